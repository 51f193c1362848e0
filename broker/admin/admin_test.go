package admin

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/parleymq/parley/broker/api"
)

func TestIndexNamesWhatIsServed(t *testing.T) {
	t.Parallel()
	for _, pprof := range []bool{false, true} {
		h := New(Options{
			API: &api.Handlers{}, Registry: prometheus.NewRegistry(), Pprof: pprof,
			Started: func() bool { return false }, NotReady: func() string { return "starting" },
		})
		for path, status := range map[string]int{"/": 200, "/v1/": 200, "/nothing": 404, "/v1/nothing": 404, "/readyz": 503, "/v1/topics": 503} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			if w.Code != status {
				t.Errorf("%s: status %d, want %d", path, w.Code, status)
			}
			if status != 200 {
				continue
			}
			for _, want := range []string{"/healthz\n", "/metrics\n", "/v1/topics\n", "/v1/epochs/{n}\n"} {
				if !strings.Contains(w.Body.String(), want) {
					t.Errorf("%s doesn't name %q:\n%s", path, want, w.Body)
				}
			}
			if strings.Contains(w.Body.String(), "pprof") != pprof {
				t.Errorf("%s: pprof %v:\n%s", path, pprof, w.Body)
			}
		}
	}
}
