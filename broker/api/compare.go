package api

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch/config"
)

// PartitionCompare has the replicas of a partition compared from the beginning of the log.
func (h *Handlers) PartitionCompare(ctx context.Context, q wire.PartitionRequest) (wire.CompareBegun, error) {
	t, err := findPartition(h.Store.Current(), q.Topic, q.Partition)
	if err != nil {
		return wire.CompareBegun{}, err
	}
	passes, err := h.Runtime.Compare(ctx, t.ID, q.Partition)
	if err != nil {
		return wire.CompareBegun{}, err
	}
	return wire.CompareBegun{Topic: q.Topic, Partition: q.Partition, Passes: passes}, nil
}

func millis(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339Nano)
}

// comparison tells how the replicas' comparison stands, nil where the leader could not be asked.
func (p *live) comparison(c *config.Config) *wire.PartitionComparison {
	s := p.Comparison
	if s == nil {
		return nil
	}
	out := &wire.PartitionComparison{
		Ended: millis(s.EndedMS), From: s.From, UpTo: s.UpTo, Bytes: s.Bytes, State: s.State, Passes: s.Passes,
		Running: s.Running, At: s.At, More: s.More, Event: s.Event, EventAt: millis(s.EventMS),
	}
	for _, id := range s.Missing {
		out.Missing = append(out.Missing, brokerName(c, id))
	}
	switch {
	case len(s.Differences) > 0:
		out.Result = "different"
	case s.EndedMS == 0:
		out.Result = "never"
	case len(s.Missing) > 0:
		out.Result = "incomplete"
	default:
		out.Result = "same"
	}
	for i := range s.Differences {
		d := &s.Differences[i]
		one := wire.ReplicaDifference{What: d.What, From: d.From, To: d.To, Found: millis(d.FoundMS), Verdict: "undecided", Detail: p.advice(c, d)}
		if d.Good != "" {
			one.Verdict = "replaced"
		}
		for _, v := range d.Votes {
			one.Replicas = append(one.Replicas, wire.ReplicaDigest{
				Broker: brokerName(c, v.Broker), Digest: v.Digest, Odd: v.Odd, Bad: d.Good != "" && (v.Digest != d.Good || v.Odd != ""),
			})
		}
		out.Differences = append(out.Differences, one)
	}
	return out
}

// differenceText says in one line what differs, and what comes of it.
func (p *live) differenceText(d *DifferenceStatus) string {
	what := "its replicas have different states"
	if d.What != "state" {
		what = fmt.Sprintf("its replicas have different records at offsets %d to %d", d.From, d.To-1)
	}
	if d.Good == "" {
		return what + ", and no majority of them is the same: nothing is replaced before somebody decides, partition describe says how"
	}
	return what + ": those that differ from the majority are being replaced"
}

// advice says what people should do about a difference.
func (p *live) advice(c *config.Config, d *DifferenceStatus) string {
	name := fmt.Sprintf("%s/%d", p.topic.Name, p.number)
	if d.Good != "" {
		var bad []string
		for _, v := range d.Votes {
			if v.Digest != d.Good || v.Odd != "" {
				bad = append(bad, brokerName(c, v.Broker))
			}
		}
		return fmt.Sprintf("nothing: the replica on %s is replaced by a fresh one, which gets its records from the others; look at that broker's disk", strings.Join(bad, ", "))
	}
	var odd []string
	for _, v := range d.Votes {
		if v.Odd != "" {
			odd = append(odd, brokerName(c, v.Broker))
		}
	}
	hint := "nothing tells which replica is right: read the offsets from each (parley partition transfer " + name + " --to BROKER, then parley sub) and compare them with what was published"
	if d.What == "state" {
		hint = "nothing tells which replica is right: keep a copy of each broker's data directory, and report it, for this is a fault of the program and not of a disk"
	}
	if n := len(odd); n > 0 && n < len(d.Votes) {
		hint = "the replica on " + strings.Join(odd, ", ") + " contradicts what it noted itself when it stored them, so the others are likely right"
	}
	return hint + fmt.Sprintf("; then let a right one lead (parley partition transfer %s --to BROKER) and move the wrong one to another broker (parley partition move %s --to BROKER,…)", name, name)
}
