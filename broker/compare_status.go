package broker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parleymq/parley/broker/api"
)

// What is told of comparisons: to people by the API, and by metrics.

// status is what the API tells of a partition that this broker leads.
func (k *comparer) status(s *slot) *api.ComparisonStatus {
	n := k.look(s)
	st := &api.ComparisonStatus{Passes: n.Passes, Running: n.Begun != 0 || n.Requested, At: max(n.Cursor, 0), More: n.More, Event: n.Event, EventMS: n.EventAt}
	if l := n.Last; l != nil {
		st.EndedMS, st.From, st.UpTo, st.Bytes, st.Missing, st.State = l.Ended, l.From, l.UpTo, l.Bytes, l.Missing, l.State
	}
	for _, d := range n.Differences {
		one := api.DifferenceStatus{What: d.What, From: d.From, To: d.To, FoundMS: d.Found, Good: d.Good}
		for _, v := range d.Votes {
			one.Votes = append(one.Votes, api.ReplicaVote(v))
		}
		st.Differences = append(st.Differences, one)
	}
	return st
}

var (
	descScrubbed    = clusterDesc("scrub_bytes_total", "Bytes of logs that this broker read back from disk to verify and compare them; a chunk counts for 4 KiB at least.")
	descCompared    = clusterDesc("compare_ranges_total", "Runs of logs that this broker compared with other replicas, as their leader.")
	descPasses      = clusterDesc("compare_passes_total", "Times that this broker compared a whole log, as its leader.")
	descDifferences = clusterDesc("compare_differences_total", "Differences of replicas that this broker found as their leader.")
	descUnresolved  = clusterDesc("compare_differences", "Differences of replicas that this broker leads and that are not over.")
	descUndecided   = clusterDesc("compare_undecided", "Those of them with no majority: nothing is done before somebody decides.")
	descPassing     = clusterDesc("compare_passing_total", "Differences that were not there any more when they were read again.")
	descReplaced    = clusterDesc("replicas_replaced_total", "Damaged replicas of this broker that an epoch replaced by fresh ones, for whatever reason.")
	descOldest      = clusterDesc("compare_oldest_seconds", "How long ago the partition was compared as a whole, of those that this broker leads, that was compared longest ago.")
)

func (k *comparer) collect(gauge, counter func(d *prometheus.Desc, v float64, labels ...string)) {
	counter(descScrubbed, float64(k.bytes.Load()))
	counter(descCompared, float64(k.ranges.Load()))
	counter(descPasses, float64(k.passes.Load()))
	counter(descDifferences, float64(k.found.Load()))
	counter(descPassing, float64(k.passing.Load()))
	counter(descReplaced, float64(k.replaced.Load()))
	now := time.Now()
	oldest, unresolved, undecided := time.Duration(0), 0, 0
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range *k.b.local.Load() {
		if !k.b.leadsNow(s) {
			continue
		}
		n := k.note(s, now)
		last := n.Since
		if n.Last != nil {
			last = n.Last.Begun // what it says is as old as its beginning
		}
		oldest = max(oldest, now.Sub(time.UnixMilli(last)))
		unresolved += len(n.Differences) + n.More
		for i := range n.Differences {
			if n.Differences[i].Good == "" {
				undecided++
			}
		}
	}
	gauge(descOldest, oldest.Seconds())
	gauge(descUnresolved, float64(unresolved))
	gauge(descUndecided, float64(undecided))
}
