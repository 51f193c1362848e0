package client

import (
	"math/rand/v2"
	"time"
)

// Waits between two tries: backoffMin, doubling up to backoffMax, each with half
// of it left to chance, so that clients don't come back all at once.
const (
	backoffMin = 20 * time.Millisecond
	backoffMax = time.Second
)

// backoff is the wait before try n, counted from 0.
func backoff(n int) time.Duration {
	d := backoffMax
	if n < 6 {
		d = min(backoffMin<<n, backoffMax)
	}
	return d/2 + rand.N(d/2)
}
