package epoch

import (
	"fmt"

	"github.com/parleymq/parley/replication/paxos"
)

// encodeRecords puts the records of joined steps into one payload, so that the journal
// holds all of them or none.
func encodeRecords(records []paxos.Record) []byte {
	w := writer{}
	w.uint(uint64(len(records)))
	for i := range records {
		w.bytes(paxos.AppendRecord(nil, records[i]))
	}
	return w.b
}

// decodeRecords reads them; they share b.
func decodeRecords(b []byte) ([]paxos.Record, error) {
	rd := reader{b: b}
	var records []paxos.Record
	for n := rd.count(len(b)); n > 0 && rd.err == nil; n-- {
		r, err := paxos.DecodeRecord(rd.bytes(maxPayload))
		if err != nil && rd.err == nil {
			return nil, err
		}
		records = append(records, r)
	}
	if err := rd.end(); err != nil {
		return nil, err
	}
	for i := range records {
		if r := &records[i]; r.Kind == paxos.RecordDecided && len(r.Entries) == 0 {
			return nil, fmt.Errorf("%w: no epoch is decided", errForm)
		}
	}
	return records, nil
}

// compactRecords drops what a later decision in the same group makes useless.
func compactRecords(records []paxos.Record) []paxos.Record {
	decided := uint64(0)
	for i := range records {
		if records[i].Kind == paxos.RecordDecided {
			decided = records[i].Epoch
		}
	}
	kept := records[:0]
	for i, r := range records {
		if r.Kind != paxos.RecordDecided {
			if r.Epoch <= decided {
				continue
			}
			// An acceptance carries its promise; of two promises the later holds.
			if i+1 < len(records) && records[i+1].Kind != paxos.RecordDecided && records[i+1].Epoch == r.Epoch &&
				(records[i+1].Kind == paxos.RecordAccepted || r.Kind == paxos.RecordPromised) {
				continue
			}
		}
		kept = append(kept, r)
	}
	return kept
}

// entryOf makes the journal's entry of what joined steps persist.
func entryOf(records []paxos.Record) entry {
	records = compactRecords(records)
	last := records[len(records)-1]
	if len(records) == 1 && last.Kind == paxos.RecordDecided && len(last.Entries) == 1 {
		return entry{kind: kindValue, epoch: last.Epoch, payload: last.Entries[0].Value}
	}
	return entry{kind: kindStep, epoch: last.Epoch, payload: encodeRecords(records)}
}
