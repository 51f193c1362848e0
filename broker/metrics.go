package broker

import (
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/parleymq/parley/partition/storage"
)

// metrics of one broker, in a registry of its own so that several brokers can
// live in one process.
type metrics struct {
	registry *prometheus.Registry

	sessions       prometheus.Gauge
	publishLatency prometheus.Histogram
	fetchLatency   prometheus.Histogram
	requestLatency prometheus.Histogram
	syncLatency    prometheus.Histogram
	recordsIn      prometheus.Counter
	bytesIn        prometheus.Counter
	batchesIn      prometheus.Counter
	fetches        prometheus.Counter
	fetchBytes     prometheus.Counter
	resent         prometheus.Counter
	publishErrors  *prometheus.CounterVec
	fetchErrors    *prometheus.CounterVec

	pulledRecords prometheus.Counter
	pulledBytes   prometheus.Counter
	pulledRanges  prometheus.Counter
	nextRecords   prometheus.Counter
	groupErrors   *prometheus.CounterVec
	groups        groupMetrics
}

// latencies from 50 µs to about 13 s, each bucket 1.87 times the one before.
var latencies = prometheus.ExponentialBuckets(50e-6, 1.87, 21)

func newMetrics(b *Broker) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "parley_" + name, Help: help})
		m.registry.MustRegister(c)
		return c
	}
	histogram := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "parley_" + name, Help: help, Buckets: latencies})
		m.registry.MustRegister(h)
		return h
	}
	byReason := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "parley_" + name, Help: help}, []string{"reason"})
		m.registry.MustRegister(c)
		return c
	}
	m.sessions = prometheus.NewGauge(prometheus.GaugeOpts{Name: "parley_sessions", Help: "Client sessions attached to the broker."})
	m.registry.MustRegister(m.sessions, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.publishLatency = histogram("publish_seconds", "Time from taking a publish, a record or a batch, to its answer.")
	m.fetchLatency = histogram("fetch_seconds", "Time to read and send a fetch's records, the wait for them left out.")
	m.requestLatency = histogram("request_seconds", "Time to answer an API request.")
	m.syncLatency = histogram("store_sync_seconds", "Time for the store to make durable what was stored, once a checkpoint.")
	m.recordsIn = counter("records_in_total", "Records taken by appenders.")
	m.bytesIn = counter("record_bytes_in_total", "Bytes of values and of batches taken by appenders.")
	m.batchesIn = counter("batches_in_total", "Batches of SDK producers taken by appenders.")
	m.resent = counter("resent_total", "Publishes and fetches of plain clients that were sent again, since a leader that was one no more had refused them.")
	m.fetches = counter("fetches_total", "Fetches answered.")
	m.fetchBytes = counter("fetch_bytes_total", "Bytes of record batches sent to readers.")
	m.publishErrors = byReason("publish_errors_total", "Publishes answered with an error.")
	m.fetchErrors = byReason("fetch_errors_total", "Fetches answered with an error.")
	m.pulledRecords = counter("pulled_records_total", "Records handed to members of shared groups.")
	m.pulledBytes = counter("pulled_bytes_total", "Bytes of record batches that hold them.")
	m.pulledRanges = counter("pulled_ranges_total", "Ranges of offsets that they were handed out in: many short ones cost more.")
	m.nextRecords = counter("next_records_total", "Records sent to plain NATS clients that asked for the next.")
	m.groupErrors = byReason("group_errors_total", "Requests of group members and plain consumers answered with an error.")
	m.registry.MustRegister(&partitionCollector{b: b})
	return m
}

func (m *metrics) recordIn(bytes int) {
	m.recordsIn.Inc()
	m.bytesIn.Add(float64(bytes))
}

func (m *metrics) batchIn(records, bytes int) {
	m.batchesIn.Inc()
	m.recordsIn.Add(float64(records))
	m.bytesIn.Add(float64(bytes))
}

func (m *metrics) publishFailed(reason string) { m.publishErrors.WithLabelValues(reason).Inc() }
func (m *metrics) fetchFailed(reason string)   { m.fetchErrors.WithLabelValues(reason).Inc() }

func (m *metrics) fetched(bytes int, took time.Duration) {
	m.fetches.Inc()
	m.fetchBytes.Add(float64(bytes))
	m.fetchLatency.Observe(took.Seconds())
}

// timedEngine measures how long the store's syncs take.
type timedEngine struct {
	storage.Engine
	syncs prometheus.Histogram
}

func (e timedEngine) Sync() error {
	began := time.Now()
	err := e.Engine.Sync()
	e.syncs.Observe(time.Since(began).Seconds())
	return err
}

// partitionCollector reads what the partitions, Raft and the store know, at the
// moment of a scrape. Its metrics come and go with the topics, so it describes
// none beforehand.
type partitionCollector struct{ b *Broker }

func (*partitionCollector) Describe(chan<- *prometheus.Desc) {}

var (
	partitionLabels = []string{"topic", "partition"}
	partDesc        = func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("parley_partition_"+name, help, partitionLabels, nil)
	}
	descNext      = partDesc("next_offset", "Offset of the next record.")
	descStart     = partDesc("start_offset", "First offset that can be read.")
	descBytes     = partDesc("bytes", "Bytes stored.")
	descLeading   = partDesc("leading", "1 when this broker leads the partition.")
	descQueued    = partDesc("queued_bytes", "Bytes taken and not yet answered.")
	descAcked     = partDesc("acked_records_total", "Records acked by this broker.")
	descReapplied = partDesc("reapplied_entries_total", "Log entries applied again after the start.")
	descRetried   = partDesc("retried_proposals_total", "Proposals made again after a drop.")
	descCatching  = partDesc("catching_up_bytes", "Bytes that this replica lacks and has yet to fetch from the others.")
	descDamaged   = partDesc("damaged", "1 when stored records are damaged or the partition could not be opened.")

	descMoving = partDesc("moving", "1 while this broker leads the partition and it moves to other brokers.")
	descCopied = prometheus.NewDesc("parley_partition_copied_bytes", "Bytes that a replica which a move adds has stored, as its leader knows.", []string{"topic", "partition", "to"}, nil)

	descMoves  = prometheus.NewDesc("parley_moves_total", "Moves that this broker finished as the partition's leader.", nil, nil)
	descSteps  = prometheus.NewDesc("parley_move_steps_total", "Steps of moves that this broker took.", []string{"step"}, nil)
	descTrash  = prometheus.NewDesc("parley_trash_replicas", "Replicas that moved away from this broker and whose data is still here.", nil, nil)
	descSent   = prometheus.NewDesc("parley_copied_bytes_total", "Bytes of copies that this broker sent to replicas that lacked too much for the Raft log.", nil, nil)
	descTossed = prometheus.NewDesc("parley_trash_deleted_total", "Replicas that moved away and whose data was deleted.", nil, nil)

	descEpoch = prometheus.NewDesc("parley_epoch", "Newest epoch this broker knows.", nil, nil)
	descReady = prometheus.NewDesc("parley_ready", "1 when the broker serves.", nil, nil)
	descFree  = prometheus.NewDesc("parley_disk_free_bytes", "Free bytes of the data directory's file system.", nil, nil)
	descFull  = prometheus.NewDesc("parley_disk_full", "1 while publishes are refused for want of space.", nil, nil)
	descCatch = prometheus.NewDesc("parley_catchup_replicas", "Replicas here that fetch what they lack from the others, or wait to.", nil, nil)
	descInfo  = prometheus.NewDesc("parley_info", "Who this broker is; always 1.", []string{"name", "version", "cluster"}, nil)
)

func (p *partitionCollector) Collect(ch chan<- prometheus.Metric) {
	b := p.b
	r := b.routes.Load()
	if r == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge(descInfo, 1, b.c.Name, Version, b.id.ClusterID)
	gauge(descEpoch, float64(b.epochs.Current().Epoch))
	gauge(descReady, flag(b.NotReady() == ""))
	gauge(descFree, float64(b.space.Free()))
	gauge(descFull, flag(b.space.Full()))
	b.keeper.collect(gauge)
	held, deleted := b.trash.held()
	gauge(descTrash, float64(held))
	counter(descSent, float64(b.copies.copied()))
	counter(descTossed, float64(deleted))
	counter(descMoves, float64(b.movers.finished.Load()))
	for kind := range b.movers.steps {
		if n := b.movers.steps[kind].Load(); n > 0 {
			counter(descSteps, float64(n), stepKind(kind).String())
		}
	}
	catching := 0
	for _, t := range r.byID {
		for _, s := range t.parts {
			if !s.local {
				continue
			}
			n := strconv.Itoa(int(s.number))
			part := s.partition.Load()
			if part == nil {
				gauge(descDamaged, flag(s.problem.Load() != nil), t.name, n)
				continue
			}
			st := part.Status()
			gauge(descNext, float64(st.Next), t.name, n)
			gauge(descStart, float64(st.Start), t.name, n)
			gauge(descBytes, float64(st.Bytes), t.name, n)
			gauge(descLeading, flag(st.Leading), t.name, n)
			gauge(descQueued, float64(st.Queued), t.name, n)
			if c := st.Restoring; c != nil {
				catching++
				gauge(descCatching, float64(max(c.Lacking-c.Fetched, 0)), t.name, n)
			} else {
				gauge(descCatching, 0, t.name, n)
			}
			gauge(descDamaged, flag(st.Damage != ""), t.name, n)
			if m := s.moveStatus(b, st.Bytes); m != nil && st.Leading {
				gauge(descMoving, 1, t.name, n)
				for _, r := range m.Adding {
					gauge(descCopied, float64(r.Bytes), t.name, n, b.brokerName(r.Broker))
				}
			}
			counter(descAcked, float64(st.Acked), t.name, n)
			counter(descReapplied, float64(st.Reapplied), t.name, n)
			counter(descRetried, float64(st.Retried), t.name, n)
		}
	}
	gauge(descCatch, float64(catching))
	b.together(r, gauge, counter)
	b.metrics.groups.collect(b, r, ch)
	for prefix, part := range map[string]any{"raft": b.host, "store": b.engine, "checkpoint": b.checkpoints, "catchup": b.catchUps, "paxos": b.epochs} {
		f, ok := part.(figured)
		if !ok {
			continue
		}
		for name, v := range f.Figures() {
			d := prometheus.NewDesc("parley_"+prefix+"_"+name, "Reported by the broker's "+prefix+".", nil, nil)
			if strings.HasSuffix(name, "_total") {
				counter(d, v)
			} else {
				gauge(d, v)
			}
		}
	}
}

func flag(v bool) float64 {
	if v {
		return 1
	}
	return 0
}
