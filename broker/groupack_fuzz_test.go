package broker

import (
	"testing"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/group"
)

// FuzzAck: subject and body of a plain client's ack. What is taken from them is within what partitions take.
func FuzzAck(f *testing.F) {
	f.Add([]byte(wire.AckPrefix+"orders.eu.3.g.41.1.812"), []byte(`-NAK {"delay_ms":1000}`))
	f.Add([]byte(wire.AckPrefix+"t.0.g.999999999999999999.2147483647.18446744073709551615"), []byte("+TERM why"))
	f.Add([]byte(wire.AckPrefix+"t.0.g.0.1.1"), []byte(`-NAK {"delay_ms":9223372036854775807}`))
	f.Fuzz(func(t *testing.T, subject, body []byte) {
		a, ok := parseAck(subject)
		if !ok {
			return
		}
		if a.offset < 0 || a.number < 0 || a.number >= wire.MaxPartitions || len(a.group) > wire.MaxGroupName || a.topic == "" {
			t.Fatalf("%q is %+v", subject, a)
		}
		item, err := a.item(body, false)
		if err == nil && (item.First < 0 || item.Last != item.First || item.DelayMS < -1 || item.DelayMS > group.MaxDelayMS ||
			len(item.Reason) > group.MaxText || item.Kind < group.Ack || item.Kind > group.Return) {
			t.Fatalf("%q is %+v", body, item)
		}
	})
}
