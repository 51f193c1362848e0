package broker

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parleymq/parley/partition/group"
)

// groupMetrics tell of each group on the partitions that this broker leads, added
// up: over all brokers that is the group. Labels come and go with the groups, so at
// most Limits.GroupMetrics of them are told of, and how many are not is told too.
type groupMetrics struct {
	mu   sync.Mutex
	last map[groupAt]groupCounts // what the partitions' counters were at the last scrape
	sums map[groupName]*groupCounts
}

type groupName struct{ topic, group string }

// groupAt is a group on one partition.
type groupAt struct {
	groupName
	number int32
}

// groupCounts only grow, on one broker: a partition counts from when it began to lead.
type groupCounts struct {
	handled, delivered, redelivered, deadLetters uint64
	seen                                         bool // at this scrape
}

// add takes a partition's counters: what they grew by since the last scrape.
func (c *groupCounts) add(now, last groupCounts) {
	grown := func(now, last uint64) uint64 {
		if now < last { // it leads anew and counts from 0
			return now
		}
		return now - last
	}
	c.handled += grown(now.handled, last.handled)
	c.delivered += grown(now.delivered, last.delivered)
	c.redelivered += grown(now.redelivered, last.redelivered)
	c.deadLetters += grown(now.deadLetters, last.deadLetters)
	c.seen = true
}

// groupGauges are as they are now.
type groupGauges struct {
	lag, pending, redelivering, deadPending int64
	lagMS                                   int64
	members                                 int
	stuck                                   bool
	letters                                 []stuckLetter
}

// stuckLetter is a partition's oldest dead letter that can't be written.
type stuckLetter struct {
	number int32
	offset int64
	since  time.Time
}

var (
	groupDesc = func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("parley_group_"+name, help, []string{"topic", "group"}, nil)
	}
	stuckDesc = func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("parley_group_stuck_"+name, help, []string{"topic", "group", "partition"}, nil)
	}
	descGroupLag          = groupDesc("lag_records", "Records that the group has not handled, on partitions led here.")
	descGroupLagSeconds   = groupDesc("lag_seconds", "Age of the oldest record that the group has not handled, on partitions led here.")
	descGroupMembers      = groupDesc("members", "Members of the group, where its anchor is led.")
	descGroupPending      = groupDesc("pending_records", "Records delivered and not acked.")
	descGroupRedelivering = groupDesc("redelivering_records", "Records that came back and wait to be delivered again.")
	descGroupDeadPending  = groupDesc("dead_pending_records", "Records given up and not yet in the dead-letter topic.")
	descGroupStuck        = groupDesc("stuck", "1 while dead letters can't be written.")
	descGroupStuckOffset  = stuckDesc("offset", "Offset of the partition's oldest dead letter that can't be written; gone once it is.")
	descGroupStuckSeconds = stuckDesc("seconds", "How long it can't be.")
	descGroupHandled      = groupDesc("handled_records_total", "Records handled, since the broker leads the partitions.")
	descGroupDelivered    = groupDesc("delivered_records_total", "Records delivered to members of shared groups.")
	descGroupRedelivered  = groupDesc("redelivered_records_total", "Of them, those that had been delivered before.")
	descGroupDead         = groupDesc("dead_letters_total", "Records that went to the dead-letter topic.")
	descGroupsUnknown     = prometheus.NewDesc("parley_groups_unknown_partitions", "Partitions with a replica here that have no leader: what lag groups have there nobody tells.", nil, nil)
	descGroupsUntold      = prometheus.NewDesc("parley_groups_untold", "Groups that are over the limit and not told of here.", nil, nil)
)

// collect sends the groups' figures.
func (g *groupMetrics) collect(b *Broker, r *routes, ch chan<- prometheus.Metric) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sums == nil {
		g.sums = map[groupName]*groupCounts{}
	}
	gauges := map[groupName]*groupGauges{}
	untold := map[groupName]bool{}
	last := map[groupAt]groupCounts{}
	for _, c := range g.sums {
		c.seen = false
	}
	unknown := 0
	for _, t := range r.byID {
		for _, s := range t.parts {
			if p, to := b.leader(s, false); s.local && p == nil && to == 0 {
				unknown++
			}
			p := s.partition.Load()
			if p == nil || !p.Leading() {
				continue
			}
			states, err := p.GroupStates("")
			if err != nil { // it has just stopped to lead, and nobody else tells yet
				unknown++
				continue
			}
			for i := range states {
				g.take(b, groupName{t.name, states[i].Group}, s.number, &states[i], gauges, untold, last)
			}
		}
	}
	g.last = last
	for name, c := range g.sums {
		if !c.seen {
			delete(g.sums, name) // deleted, or led by others now
		}
	}
	ch <- prometheus.MustNewConstMetric(descGroupsUnknown, prometheus.GaugeValue, float64(unknown))
	g.send(gauges, len(untold), ch)
}

func (g *groupMetrics) take(b *Broker, name groupName, number int32, st *group.Status,
	gauges map[groupName]*groupGauges, untold map[groupName]bool, last map[groupAt]groupCounts,
) {
	v := gauges[name]
	if v == nil {
		if len(gauges) >= b.c.Limits.GroupMetrics {
			untold[name] = true
			return
		}
		v = &groupGauges{}
		gauges[name] = v
	}
	v.lag += st.Lag
	v.lagMS = max(v.lagMS, st.LagMS)
	v.pending += st.Pending
	v.redelivering += st.Redelivering
	v.deadPending += st.DeadPending
	v.members += len(st.Members)
	v.stuck = v.stuck || st.Problem != ""
	if s := st.Stuck; s != nil {
		v.letters = append(v.letters, stuckLetter{number, s.Offset, time.UnixMilli(s.SinceMS)})
	}
	sum := g.sums[name]
	if sum == nil {
		sum = &groupCounts{}
		g.sums[name] = sum
	}
	at := groupAt{name, number}
	now := groupCounts{handled: st.Handled, delivered: st.Delivered, redelivered: st.Redelivered, deadLetters: st.DeadLetters}
	sum.add(now, g.last[at])
	last[at] = now
}

func (g *groupMetrics) send(gauges map[groupName]*groupGauges, untold int, ch chan<- prometheus.Metric) {
	for name, v := range gauges {
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, name.topic, name.group)
		}
		counter := func(d *prometheus.Desc, v uint64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), name.topic, name.group)
		}
		gauge(descGroupLag, float64(v.lag))
		gauge(descGroupLagSeconds, float64(v.lagMS)/1000)
		gauge(descGroupMembers, float64(v.members))
		gauge(descGroupPending, float64(v.pending))
		gauge(descGroupRedelivering, float64(v.redelivering))
		gauge(descGroupDeadPending, float64(v.deadPending))
		gauge(descGroupStuck, flag(v.stuck))
		for _, x := range v.letters {
			n := strconv.Itoa(int(x.number))
			ch <- prometheus.MustNewConstMetric(descGroupStuckOffset, prometheus.GaugeValue, float64(x.offset), name.topic, name.group, n)
			ch <- prometheus.MustNewConstMetric(descGroupStuckSeconds, prometheus.GaugeValue, time.Since(x.since).Seconds(), name.topic, name.group, n)
		}
		c := g.sums[name]
		counter(descGroupHandled, c.handled)
		counter(descGroupDelivered, c.delivered)
		counter(descGroupRedelivered, c.redelivered)
		counter(descGroupDead, c.deadLetters)
	}
	ch <- prometheus.MustNewConstMetric(descGroupsUntold, prometheus.GaugeValue, float64(untold))
}

// pulled counts what a pull has handed out.
func (m *metrics) pulled(deliveries []group.Delivery, bytes int) {
	n := int64(0)
	for i := range deliveries {
		n += deliveries[i].Last - deliveries[i].First + 1
	}
	m.pulledRecords.Add(float64(n))
	m.pulledBytes.Add(float64(bytes))
	m.pulledRanges.Add(float64(len(deliveries)))
}

func (m *metrics) nextDelivered(records int) { m.nextRecords.Add(float64(records)) }
func (m *metrics) groupFailed(reason string) { m.groupErrors.WithLabelValues(reason).Inc() }
