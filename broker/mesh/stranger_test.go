package mesh

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestStrangerForAWhile: that a peer doesn't know this broker is an error only when it lasts, and
// then once.
func TestStrangerForAWhile(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	m := &Mesh{log: zerolog.New(&log).Level(zerolog.InfoLevel)}
	l := &link{m: m, kind: kindData, peer: &peer{id: 2}}
	unknown := refuse(RefusedIncarnation, "the newest epoch that broker b2 knows does not name b1")
	l.failed(unknown)
	l.failed(unknown)
	if log.Len() > 0 {
		t.Fatalf("at once: %s", log.String())
	}
	l.stranger = time.Now().Add(-strangerGrace)
	l.failed(unknown)
	l.failed(unknown)
	if n := strings.Count(log.String(), "peer link refused"); n != 1 {
		t.Fatalf("%d times after a while: %s", n, log.String())
	}
	log.Reset()
	l.failed(errors.New("connection refused"))
	l.failed(refuse(RefusedSecret, "the cluster secrets differ"))
	if out := log.String(); !strings.Contains(out, "peer cannot be reached") || !strings.Contains(out, "secrets differ") {
		t.Fatalf("others: %s", out)
	}
	log.Reset()
	if l.failed(unknown); log.Len() > 0 {
		t.Fatalf("unknown anew: %s", log.String())
	}
}
