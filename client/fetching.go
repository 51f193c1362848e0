package client

import "time"

// run is the fetching goroutine.
func (r *Reader) run() {
	defer close(r.ended)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		due := r.work(time.Now())
		for _, f := range r.begin {
			f.t.fetch(f.attempt, f.offset, r.cfg.fetchBytes(len(r.tracks)))
		}
		if len(r.begin) > 0 {
			r.begin = r.begin[:0]
			r.nudge() // a fetch that failed at once has a time to be tried again
		}
		if due.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(time.Until(due), 0))
		}
		select {
		case <-r.wake:
		case <-timer.C:
		case <-r.stop:
			return
		}
	}
}

// work takes what has come, books what to fetch in r.begin, and says when to look
// again.
func (r *Reader) work(now time.Time) (due time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arrivals, r.swap = r.swap[:0], r.arrivals
	for i := range r.swap {
		if a := &r.swap[i]; a.t.attempt == a.tag {
			a.t.arrived(&a.r, now)
		}
		r.swap[i] = fetched{}
	}
	r.grow()

	limit := fetchWait + r.c.cfg.requestTimeout
	busy := 0 // fetches that will bring something
	for _, t := range r.tracks {
		if t.attempt != 0 && now.Sub(t.asked) >= limit {
			t.forget()
			t.attempt = 0
			t.failed(unanswered(t.subject, limit), nil, now)
		}
		if t.attempt != 0 && now.Sub(t.asked) >= overdueAfter && t.via != nil && r.routes.to(r.view, t.partition) != t.via {
			// Another broker leads by now, or the leader can be asked without a detour.
			t.forget()
			t.attempt = 0
		}
		if t.attempt != 0 && t.fetchAt < t.next {
			busy++
		}
	}
	each := r.cfg.fetchBytes(len(r.tracks))
	// Those come first of which the consumer has nothing, beginning with another one
	// each time, so that none waits for ever.
	r.first++
	for _, empty := range []bool{true, false} {
		for i := range r.tracks {
			t := r.tracks[(r.first+i)%len(r.tracks)]
			behind := t.fetchAt < t.next
			if (len(t.queue) == 0) != empty || behind && busy >= maxFetches ||
				!t.wants(now, r.bytes+busy*each < r.cfg.prefetch) {
				continue
			}
			t.attempts++
			t.attempt, t.asked = t.attempts, now
			r.begin = append(r.begin, fetching{t, t.attempt, t.fetchAt})
			if behind {
				busy++
			}
		}
	}
	for _, t := range r.tracks {
		at := t.retryAt
		if t.attempt != 0 {
			at = t.asked.Add(limit)
		}
		if at.After(now) && (due.IsZero() || at.Before(due)) {
			due = at
		}
	}
	return due
}

// grow adds the partitions that the topic has got since. r.mu is held.
func (r *Reader) grow() {
	if r.cfg.partitions != nil || r.cfg.untilEnd {
		return
	}
	for n := r.view.partitions.Load(); int32(len(r.tracks)) < n; r.live++ {
		t := newTrack(r, int32(len(r.tracks)), 0, -1)
		t.fresh = true
		r.tracks = append(r.tracks, t)
	}
}
