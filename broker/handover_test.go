package broker_test

import (
	"testing"
	"time"

	"github.com/parleymq/parley/broker/brokertest"
)

// TestStopTogether: brokers that all stop at once don't wait for one another to take over.
func TestStopTogether(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 12)
	begin := time.Now()
	c.Stop()
	took := time.Since(begin)
	t.Logf("stopped after %s", took.Round(time.Millisecond))
	if took > 5*time.Second { // it is a tenth of a second where nothing else runs
		t.Errorf("stopped after %s", took)
	}
}
