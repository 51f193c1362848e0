package main

import (
	"context"
	"fmt"
	"time"
)

// levelLimit is how long after the last ack replicas may lack something.
const levelLimit = 30 * time.Second

// partitionName is a partition as people and metrics name it.
type partitionName struct {
	topic  string
	number string
}

// level waits until the brokers that have a partition's replicas say the same of where it begins and ends, and nothing moves.
func (p *chaosProof) level(ctx context.Context) error {
	within, cancel := context.WithTimeout(ctx, levelLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for why := ""; ; {
		now, err := p.uneven(within)
		switch {
		case err == nil && now == "":
			return nil
		case err == nil:
			why = now
		case why == "" || within.Err() == nil: // else it is the limit that shows
			why = err.Error()
		}
		select {
		case <-tick.C:
		case <-within.Done():
			return fmt.Errorf("%s after the last ack the replicas are not level: %s", levelLimit, why)
		}
	}
}

// uneven says which replicas are not at the same offsets, "" when all are.
func (p *chaosProof) uneven(ctx context.Context) (string, error) {
	on := map[string]map[partitionName]offsets{}
	for _, m := range p.cluster.members {
		b, err := m.bounds(ctx)
		if err != nil {
			return "", fmt.Errorf("%s: %w", m.name, err)
		}
		on[m.name] = b
	}
	for t, err := range p.c.ListTopics(ctx) {
		if err != nil {
			return "", fmt.Errorf("list the topics: %w", err)
		}
		d, err := p.c.DescribeTopic(ctx, t.Name)
		if err != nil {
			return "", fmt.Errorf("ask where the replicas of topic %s are: %w", t.Name, err)
		}
		for _, part := range d.Partitions {
			if part.Move != nil {
				return fmt.Sprintf("partition %s/%d is moving: %s", t.Name, part.Partition, part.Move.Phase), nil
			}
			if why := unevenOn(on, partitionName{t.Name, fmt.Sprint(part.Partition)}, part.Replicas); why != "" {
				return why, nil
			}
		}
	}
	return "", nil
}

// unevenOn compares the replicas of one partition.
func unevenOn(on map[string]map[partitionName]offsets, part partitionName, brokers []string) string {
	for _, name := range brokers {
		b, ok := on[name][part]
		if !ok {
			return fmt.Sprintf("%s says nothing of partition %s/%s", name, part.topic, part.number)
		}
		if first := on[brokers[0]][part]; first != b {
			return fmt.Sprintf("partition %s/%s holds [%s, %s) on %s and [%s, %s) on %s", part.topic, part.number, first.start, first.next, brokers[0], b.start, b.next, name)
		}
	}
	return ""
}
