package broker

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/parleymq/parley/replication/epoch/config"
)

// What upkeep is about, as every broker tells it: by the newest epoch that it knows, and by what
// the soft leader told it last.
var (
	descBrokers = prometheus.NewDesc("parley_brokers", "Brokers by the state that the newest epoch gives them.", []string{"state"}, nil)
	descMissing = prometheus.NewDesc("parley_brokers_missing", "Brokers that look dead, and dead ones whose replicas were not all taken over yet.", nil, nil)
	descPaused  = prometheus.NewDesc("parley_healing_paused", "1 while too many brokers look dead for anything to be healed by itself.", nil, nil)
	descUneven  = prometheus.NewDesc("parley_replicas_uneven", "1 while replicas are yet to be evened out among the brokers.", nil, nil)
	descToMove  = prometheus.NewDesc("parley_partitions_moving", "Partitions of the cluster that get other replicas.", nil, nil)
	descLevel   = prometheus.NewDesc("parley_feature_level", "The cluster's feature level.", nil, nil)
)

func (k *keeper) collect(gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	c := k.b.epochs.Current()
	states := map[config.BrokerState]int{config.Active: 0, config.Draining: 0, config.Dead: 0}
	for i := range c.Brokers {
		states[c.Brokers[i].State]++
	}
	for s, n := range states {
		gauge(descBrokers, float64(n), s.String())
	}
	moving := 0
	for i := range c.Topics {
		for n := range c.Topics[i].Partitions {
			if c.Topics[i].Live() && c.Topics[i].Partitions[n].Moving() {
				moving++
			}
		}
	}
	v, fresh := k.latest()
	if !fresh {
		v = verdict{}
	}
	gauge(descMissing, float64(len(v.Missing)))
	gauge(descPaused, flag(v.Paused))
	gauge(descUneven, flag(c.Uneven > 0))
	gauge(descToMove, float64(moving))
	gauge(descLevel, float64(c.FeatureLevel))
}
