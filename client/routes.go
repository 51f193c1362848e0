package client

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// routes finds the connection for a request about a partition. In a cluster that is
// one to the broker that leads it, as the metadata has it; any broker forwards,
// so it is never waited for: until it is there, or when it can't be had or is silent,
// requests go over base, the connection that Connect made, or over another one while
// that is in doubt. A lone broker, or a client that reaches only one, has base and
// nothing else.
//
// Connections to leaders are dialled when they are first wanted, one a broker,
// dropped when they break or when the metadata no longer has the broker, and dialled
// anew when they are wanted again, after a back-off. There is one routes for requests and
// publishes and one for fetches, so that acks don't queue behind megabytes of records.
type routes struct {
	c    *Client
	base exchange
	// open dials a broker once; lost is called, once, when that connection breaks.
	// nil: base is all there is.
	open func(ctx context.Context, address string, lost func()) (exchange, error)

	life  context.Context // ends with close
	end   context.CancelFunc
	dials sync.WaitGroup

	mu     sync.Mutex
	direct map[string]*direct // guarded by mu; by address
	closed bool               // guarded by mu
}

// direct is a connection to one broker. Guarded by routes.mu.
type direct struct {
	x       exchange // nil: down
	since   time.Time
	dialing bool
	tries   int
	retryAt time.Time
}

const (
	// maxDirect bounds the connections for one purpose beside base. Beyond it
	// base forwards.
	maxDirect = 64
	// directRetryMax is the longest wait before a broker that can't be reached is
	// dialled again; base serves meanwhile.
	directRetryMax = 10 * time.Second
	// directSteady is how long a connection must have held for its loss not to count
	// as another failure.
	directSteady = 2 * time.Second
)

func newRoutes(c *Client, base exchange, open func(ctx context.Context, address string, lost func()) (exchange, error)) *routes {
	r := &routes{c: c, base: base, open: open, direct: make(map[string]*direct)}
	r.life, r.end = context.WithCancel(context.Background())
	return r
}

// to returns the connection for a partition.
func (r *routes) to(v *topicView, partition int32) exchange {
	if !r.several() {
		return r.base
	}
	leader := v.leader(partition)
	if leader == "" || r.c.topics.doubt(leader) == silent {
		return r.any()
	}
	if leader == r.base.broker() && r.base.up() {
		return r.base
	}
	if address := r.c.topics.address(leader); address != "" {
		if x := r.at(address); x != nil {
			return x
		}
	}
	return r.any()
}

// several says whether there is a choice.
func (r *routes) several() bool { return r.open != nil && r.c.topics.several() }

// any returns base, or while that is down, cut off or silent another connection, as any
// broker forwards.
func (r *routes) any() exchange {
	if !r.several() {
		return r.base
	}
	up := r.base.up()
	if up && r.trusts(r.base) {
		return r.base
	}
	others := r.others()
	for _, x := range others {
		if r.trusts(x) {
			return x
		}
	}
	switch {
	case up:
		return r.base
	case len(others) > 0:
		return others[0]
	}
	r.explore()
	return r.base
}

// reached returns the names of the brokers that connections stand to.
func (r *routes) reached() map[string]bool {
	names := make(map[string]bool)
	for _, x := range append(r.others(), r.base) {
		if x.up() {
			names[x.broker()] = true
		}
	}
	return names
}

func (r *routes) trusts(x exchange) bool { return r.c.topics.doubt(x.broker()) == trusted }

// some returns up to n connections that are up, to different brokers where possible, chosen
// by chance but for base. Base is among them in any case: there may be nothing else.
func (r *routes) some(n int) []exchange {
	all := []exchange{r.base}
	if !r.several() {
		return all
	}
	others := r.others()
	rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	here := r.base.broker()
	for _, x := range others {
		if len(all) < n && x.broker() != here {
			all = append(all, x)
		}
	}
	return all
}

// witnesses has connections made to as many brokers as it takes, with base, for a
// majority: among those is one that knows what the cluster is up to when
// others are cut off.
func (r *routes) witnesses() {
	if !r.several() {
		return
	}
	known := r.c.topics.known()
	want := min(len(known)/2, maxAsked-1)
	here := r.base.broker()
	for name, address := range known {
		if name != here && r.begun(address) {
			want--
		}
	}
	for name, address := range known { // in an order by chance
		if want <= 0 {
			return
		}
		if name != here && !r.begun(address) {
			r.at(address)
			if r.begun(address) {
				want--
			}
		}
	}
}

// begun says whether there is a connection to an address, or about to be.
func (r *routes) begun(address string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.direct[address]
	return d != nil && (d.x != nil || d.dialing)
}

// others returns the connections that are up beside base, always in the same order.
func (r *routes) others() []exchange {
	r.mu.Lock()
	defer r.mu.Unlock()
	var at []string
	for address, d := range r.direct {
		if d.x != nil {
			at = append(at, address)
		}
	}
	slices.Sort(at)
	up := make([]exchange, len(at))
	for i := range at {
		up[i] = r.direct[at[i]].x
	}
	return up
}

// explore dials the brokers that base is not connected to.
func (r *routes) explore() {
	if !r.several() {
		return
	}
	here := r.base.broker()
	for name, address := range r.c.topics.known() {
		if name != here || !r.base.up() {
			r.at(address)
		}
	}
}

// at returns the connection to an address; nil while there is none, which is being seen to.
func (r *routes) at(address string) exchange {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	d := r.direct[address]
	switch {
	case d == nil && len(r.direct) >= maxDirect:
		return nil
	case d == nil:
		d = &direct{}
		r.direct[address] = d
	case d.x != nil:
		return d.x
	}
	if !d.dialing && !time.Now().Before(d.retryAt) {
		d.dialing = true
		r.dials.Add(1)
		go r.dial(address, d)
	}
	return nil
}

func (r *routes) dial(address string, d *direct) {
	defer r.dials.Done()
	x, err := r.open(r.life, address, func() { r.lost(address, d) })
	r.mu.Lock()
	d.dialing = false
	wanted := !r.closed && r.direct[address] == d
	if err == nil && wanted && x.up() {
		d.x, d.since = x, time.Now()
		r.mu.Unlock()
		r.c.cfg.log("connected to a partition's leader", "address", address)
		return
	}
	first := d.tries == 0
	d.failed()
	r.mu.Unlock()
	switch {
	case err == nil:
		x.close()
	case first && wanted:
		r.c.cfg.log("a leader can't be reached directly, other brokers forward", "address", address, "error", err)
	}
}

// failed books when to dial again. r.mu is held.
func (d *direct) failed() {
	wait := min(redialAfterMin<<min(d.tries, 10), directRetryMax)
	d.retryAt = time.Now().Add(wait/2 + rand.N(wait/2))
	d.tries++
}

// lost is called when a connection has broken.
func (r *routes) lost(address string, d *direct) {
	r.mu.Lock()
	x := d.x
	d.x = nil
	if x != nil {
		if time.Since(d.since) >= directSteady {
			d.tries = 0
		}
		d.failed()
	}
	closed := r.closed
	r.mu.Unlock()
	if x == nil || closed {
		return
	}
	r.c.cfg.log("connection to a partition's leader lost", "address", address)
	x.close()
	r.c.topics.stale()
}

// keep drops the connections to addresses that are not in known, by broker's name.
func (r *routes) keep(known map[string]string) {
	r.mu.Lock()
	var gone []exchange
	for address, d := range r.direct {
		here := false
		for _, a := range known {
			here = here || a == address
		}
		if !here {
			delete(r.direct, address)
			if d.x != nil {
				gone = append(gone, d.x)
				d.x = nil
			}
		}
	}
	r.mu.Unlock()
	for _, x := range gone {
		x.close()
	}
}

func (r *routes) close() {
	r.mu.Lock()
	r.closed = true
	var all []exchange
	for _, d := range r.direct {
		if d.x != nil {
			all = append(all, d.x)
			d.x = nil
		}
	}
	r.mu.Unlock()
	r.end()
	r.dials.Wait()
	for _, x := range all {
		x.close()
	}
	r.base.close()
}

// directURL is how to dial a broker that the metadata names: as the address that was
// given to Connect, credentials and scheme included.
func directURL(urls, address string) (string, error) {
	first, _, _ := strings.Cut(urls, ",")
	first = strings.TrimSpace(first)
	if strings.Contains(address, "://") {
		return address, nil
	}
	scheme, rest, ok := strings.Cut(first, "://")
	if !ok {
		scheme, rest = "nats", first
	}
	if strings.HasPrefix(scheme, "ws") {
		return "", fmt.Errorf("dial %s: websocket addresses have no leader to dial", address)
	}
	user := ""
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		user = rest[:i+1]
	}
	return scheme + "://" + user + address, nil
}

// everyURL is urls and the brokers that are known besides: those that were given may be
// gone by now.
func everyURL(urls string, known map[string]string) string {
	all := urls
	for _, address := range slices.Sorted(maps.Values(known)) {
		if url, err := directURL(urls, address); err == nil && !strings.Contains(all, address) {
			all += "," + url
		}
	}
	return all
}
