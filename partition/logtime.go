package partition

import "time"

// logClock turns a leader's clock into log time: it never goes back, follows
// elapsed (monotonic) time, and is slewed towards the wall clock, so that a
// clock that is set an hour ahead does not expire an hour's records at once and
// one that is set back does not stop windows from expiring.
//
// A new leader takes the wall clock as it is (or the log's newest time, if that
// is later): a broker that was down cannot tell a jump from the time it missed.
type logClock struct {
	now  func() time.Time // carries a monotonic reading
	last time.Time
	ms   int64
}

// maxSlew is how much faster or slower than elapsed time log time may run: 1/8.
const maxSlew = 8

func newLogClock(now func() time.Time, newest int64) *logClock {
	t := now()
	return &logClock{now: now, last: t, ms: max(newest, t.UnixMilli())}
}

func (c *logClock) stamp() int64 {
	t := c.now()
	elapsed := t.Sub(c.last).Milliseconds()
	if elapsed <= 0 {
		return c.ms
	}
	// Only whole milliseconds are consumed, the rest counts next time.
	c.last = c.last.Add(time.Duration(elapsed) * time.Millisecond)
	c.ms += elapsed
	// Round is there because Sub uses the monotonic reading, UnixMilli the wall.
	if off := t.UnixMilli() - c.ms; off > 0 {
		c.ms += min(off, max(elapsed/maxSlew, 1))
	} else if off < 0 {
		c.ms -= min(-off, elapsed/maxSlew)
	}
	return c.ms
}
