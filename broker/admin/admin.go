// Package admin is the broker's HTTP side: health, Prometheus metrics and a
// read-only JSON view of what the $PARLEY.API requests answer. It changes
// nothing.
//
//	/healthz             200 while the process lives
//	/readyz              200 once the broker serves, 503 with the reason before
//	/metrics             Prometheus
//	/v1/topics           ?after= &limit= &deleted=true
//	/v1/topics/NAME
//	/v1/partitions       of all topics
//	/v1/groups           ?topic=              /v1/groups/TOPIC/GROUP
//	/v1/cluster          /v1/health  /v1/brokers  /v1/brokers/NAME
//	/v1/epochs           ?after= &limit=      /v1/epochs/N
//	/debug/pprof/        where it is switched on
package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/client/wire"
)

// Options of the handler.
type Options struct {
	API      *api.Handlers
	Registry *prometheus.Registry
	Started  func() bool   // the broker has read its epochs, so that API can answer
	NotReady func() string // "" when the broker serves
	Pprof    bool
}

// New returns the handler of a broker's HTTP port.
func New(o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := o.NotReady(); why != "" {
			text(w, http.StatusServiceUnavailable, why)
			return
		}
		text(w, http.StatusOK, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{
		Registry: o.Registry, MaxRequestsInFlight: 4, ErrorHandling: promhttp.ContinueOnError,
	}))
	paths := "/healthz\n/readyz\n/metrics"
	v1 := func(pattern string, f func(r *http.Request) (any, error)) {
		paths += "\n/v1/" + pattern
		mux.HandleFunc("GET /v1/"+pattern, func(w http.ResponseWriter, r *http.Request) {
			if !o.Started() {
				reply(w, nil, &wire.Error{Code: 503, Reason: wire.ReasonUnavailable, Retriable: true, Description: o.NotReady()})
				return
			}
			v, err := f(r)
			reply(w, v, err)
		})
	}
	h := o.API
	v1("topics", func(r *http.Request) (any, error) {
		q, err := listRequest(r)
		if err != nil {
			return nil, err
		}
		return h.TopicList(r.Context(), q)
	})
	v1("topics/{name}", func(r *http.Request) (any, error) {
		return h.TopicDescribe(r.Context(), wire.NameRequest{Name: r.PathValue("name")})
	})
	v1("partitions", func(r *http.Request) (any, error) { return partitions(r.Context(), h), nil })
	v1("groups", func(r *http.Request) (any, error) {
		return h.GroupList(r.Context(), wire.GroupListRequest{Topic: r.URL.Query().Get("topic")})
	})
	v1("groups/{topic}/{group}", func(r *http.Request) (any, error) {
		return h.GroupDescribe(r.Context(), wire.GroupRequest{Topic: r.PathValue("topic"), Group: r.PathValue("group")})
	})
	v1("cluster", func(r *http.Request) (any, error) { return h.ClusterStatus(r.Context(), api.None{}) })
	v1("health", func(r *http.Request) (any, error) { return h.ClusterHealth(r.Context(), api.None{}) })
	v1("brokers", func(r *http.Request) (any, error) { return h.BrokerList(r.Context(), api.None{}) })
	v1("brokers/{name}", func(r *http.Request) (any, error) {
		return h.BrokerDescribe(r.Context(), wire.NameRequest{Name: r.PathValue("name")})
	})
	v1("epochs", func(r *http.Request) (any, error) {
		q, err := listRequest(r)
		if err != nil {
			return nil, err
		}
		return h.EpochList(r.Context(), q)
	})
	v1("epochs/{n}", func(r *http.Request) (any, error) {
		n, err := strconv.ParseUint(r.PathValue("n"), 10, 64)
		if err != nil {
			return nil, badRequest("epoch " + strconv.Quote(r.PathValue("n")) + ": allowed is a number")
		}
		return h.EpochShow(r.Context(), wire.EpochRequest{Epoch: &n})
	})
	for _, index := range []string{"GET /{$}", "GET /v1/{$}"} {
		mux.HandleFunc(index, func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, paths) })
	}
	if o.Pprof {
		paths += "\n/debug/pprof/"
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// Partitions is the answer of /v1/partitions.
type Partitions struct {
	Partitions []wire.PartitionDescription `json:"partitions"`
	Epoch      uint64                      `json:"epoch"`
}

func partitions(ctx context.Context, h *api.Handlers) Partitions {
	c := h.Store.Current()
	res := Partitions{Partitions: []wire.PartitionDescription{}, Epoch: c.Epoch}
	for i := range c.Topics {
		t := &c.Topics[i]
		if !t.Live() {
			continue
		}
		for _, p := range h.Partitions(ctx, c, t) {
			p.Topic = t.Name
			res.Partitions = append(res.Partitions, p)
		}
	}
	return res
}

func listRequest(r *http.Request) (wire.ListRequest, error) {
	v := r.URL.Query()
	q := wire.ListRequest{After: v.Get("after")}
	if s := v.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			return q, badRequest("limit " + strconv.Quote(s) + ": allowed is a number")
		}
		q.Limit = n
	}
	switch s := v.Get("deleted"); s {
	case "", "false":
	case "true":
		q.Deleted = true
	default:
		return q, badRequest("deleted " + strconv.Quote(s) + ": allowed are true and false")
	}
	return q, nil
}

func badRequest(description string) error {
	return &wire.Error{Code: http.StatusBadRequest, Reason: wire.ReasonBadRequest, Description: description}
}

func reply(w http.ResponseWriter, v any, err error) {
	status := http.StatusOK
	if err != nil {
		e := api.AsError(err)
		status, v = e.Code, api.Failure{Error: e}
	}
	b, merr := json.Marshal(v)
	if merr != nil {
		http.Error(w, merr.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the client has gone: nobody to tell
}

func text(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(s + "\n"))
}
