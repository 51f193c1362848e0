package broker

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/parleymq/parley/broker/protocol"
	"github.com/parleymq/parley/broker/protocol/nats"
)

// natsFrontend is the front end of a Config that names none.
func natsFrontend(c *Config) (protocol.Frontend, error) {
	tls, err := c.TLS.load()
	if err != nil {
		return nil, err
	}
	nc := nats.Config{Logger: c.Logger, TLS: tls, DrainTime: c.DrainTime}
	if c.User != "" || c.Token != "" {
		auth := &nats.Static{Token: c.Token}
		if c.User != "" {
			auth.Users = []nats.User{{Name: c.User, Password: c.Password}}
		}
		nc.Authenticator = auth
	}
	return nats.New(nc), nil
}

// counting is a front end that counts; the NATS one does.
type counting interface{ Stats() nats.Stats }

// addFronts registers what the front ends count.
func (m *metrics) addFronts(fronts []front) {
	for _, f := range fronts {
		c, ok := f.protocol.(counting)
		if !ok {
			continue
		}
		labels := prometheus.Labels{"protocol": f.protocol.Name(), "listen": f.listener.Addr().String()}
		gauge := func(name, help string, v func(nats.Stats) int64) {
			m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "parley_client_" + name, Help: help, ConstLabels: labels},
				func() float64 { return float64(v(c.Stats())) }))
		}
		count := func(name, help string, v func(nats.Stats) uint64) {
			m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "parley_client_" + name, Help: help, ConstLabels: labels},
				func() float64 { return float64(v(c.Stats())) }))
		}
		gauge("connections", "Client connections.", func(s nats.Stats) int64 { return s.Connections })
		gauge("subscriptions", "Live subscriptions.", func(s nats.Stats) int64 { return s.Subscriptions })
		count("connections_total", "Connections accepted.", func(s nats.Stats) uint64 { return s.Accepted })
		count("connections_refused_total", "Connections refused over the limit.", func(s nats.Stats) uint64 { return s.Refused })
		count("messages_in_total", "Messages from clients.", func(s nats.Stats) uint64 { return s.InMsgs })
		count("bytes_in_total", "Payload and header bytes from clients.", func(s nats.Stats) uint64 { return s.InBytes })
		count("messages_out_total", "Messages to clients.", func(s nats.Stats) uint64 { return s.OutMsgs })
		count("bytes_out_total", "Payload and header bytes to clients.", func(s nats.Stats) uint64 { return s.OutBytes })
		count("slow_consumers_total", "Clients cut for not reading.", func(s nats.Stats) uint64 { return s.SlowConsumers })
		count("stalls_total", "Times that a producer waited for a congested consumer.", func(s nats.Stats) uint64 { return s.Stalls })
		count("auth_errors_total", "Failed authentications.", func(s nats.Stats) uint64 { return s.AuthErrors })
		count("permission_violations_total", "Operations refused by permissions.", func(s nats.Stats) uint64 { return s.Violations })
		count("protocol_errors_total", "Connections closed for what they sent.", func(s nats.Stats) uint64 { return s.ParseErrors })
		count("stale_total", "Connections closed for unanswered pings.", func(s nats.Stats) uint64 { return s.Stale })
	}
}
