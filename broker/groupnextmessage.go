package broker

import (
	"encoding/binary"
	"strconv"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/partition/record"
)

// nextMessage is one record as a plain client gets it.
type nextMessage struct {
	ack     []byte // the reply subject, which acks it
	header  []byte
	payload []byte
}

// nextMessages makes messages of the records that were delivered. batches hold them,
// and others; the messages have copies.
func nextMessages(topic string, number int32, name string, deliveries []group.Delivery, batches []byte) ([]nextMessage, error) {
	var all []nextMessage
	var it record.Iterator
	next := 0 // of deliveries
	for len(batches) > 0 && next < len(deliveries) {
		b, rest, err := record.Split(batches)
		if err != nil {
			return nil, err
		}
		batches = rest
		if b.LastOffset() < deliveries[next].First {
			continue
		}
		if err := it.Reset(b, record.Limits{}); err != nil {
			return nil, err
		}
		for next < len(deliveries) && it.Next() {
			r := it.Record()
			for next < len(deliveries) && r.Offset > deliveries[next].Last {
				next++
			}
			if next == len(deliveries) || r.Offset < deliveries[next].First {
				continue
			}
			d := &deliveries[next]
			all = append(all, nextMessage{
				ack:     appendAckSubject(nil, topic, number, name, r.Offset, d.Deliveries, d.Token),
				header:  appendNextHeader(nil, topic, number, name, d, r),
				payload: append([]byte(nil), r.Value...),
			})
		}
		if err := it.Err(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// appendNextHeader writes the record's own headers, then what the delivery is.
func appendNextHeader(b []byte, topic string, number int32, name string, d *group.Delivery, r *record.Record) []byte {
	b = append(b, "NATS/1.0\r\n"...)
	for i := range r.Headers {
		if h := &r.Headers[i]; validHeader(h) {
			b = append(append(append(b, h.Key...), ": "...), h.Value...)
			b = append(b, "\r\n"...)
		}
	}
	text := func(name, v string) {
		// A dead letter has some of these itself, of what it was: there can be one only.
		if !hasHeader(r.Headers, name) {
			b = append(append(append(append(b, name...), ": "...), v...), "\r\n"...)
		}
	}
	if r.Key != nil && printable(r.Key) {
		text(wire.HeaderKey, string(r.Key))
	}
	text(wire.HeaderTopic, topic)
	text(wire.HeaderPart, strconv.Itoa(int(number)))
	text(wire.HeaderOffset, strconv.FormatInt(r.Offset, 10))
	text(wire.HeaderGroup, name)
	text(wire.HeaderDeliveries, strconv.Itoa(int(d.Deliveries)))
	text(wire.HeaderToken, strconv.FormatUint(d.Token, 10))
	text(wire.HeaderTime, timeText(r.Timestamp))
	return append(b, "\r\n"...)
}

func timeText(ms int64) string {
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

// validHeader: the record's header can be a NATS header. One that an SDK has written may hold
// any bytes.
func validHeader(h *record.Header) bool {
	if len(h.Key) == 0 || !printable(h.Value) {
		return false
	}
	for _, c := range h.Key {
		if c <= ' ' || c >= 0x7f || c == ':' {
			return false
		}
	}
	return true
}

// printable: nothing in it would end a header line.
func printable(v []byte) bool {
	for _, c := range v {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// Messages on their way from one broker to another: for each its three parts, each
// after its length as uvarint.
func appendNextMessages(b []byte, all []nextMessage) []byte {
	for i := range all {
		for _, part := range [...][]byte{all[i].ack, all[i].header, all[i].payload} {
			b = append(binary.AppendUvarint(b, uint64(len(part))), part...)
		}
	}
	return b
}

func readNextMessages(b []byte) ([]nextMessage, error) {
	var all []nextMessage
	for len(b) > 0 {
		var m nextMessage
		for _, part := range [...]*[]byte{&m.ack, &m.header, &m.payload} {
			n, rest, ok := uvarint(b)
			if !ok || n > uint64(len(rest)) {
				return nil, errBadMessage
			}
			*part, b = rest[:n:n], rest[n:]
		}
		all = append(all, m)
	}
	return all, nil
}
