package epoch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

// owner is what one goroutine of a Cluster has to itself: the machine, the journal
// and who waits for what.
//
// A turn is: take what waits, step the machine, flush. The steps of a turn share
// their fsyncs. Messages of the machine to itself are stepped at once, before the
// records they follow from are durable, and that is safe: all of them are in the same
// group of records, which is durable whole or not at all, and nobody else sees
// anything of it before it is. So a council of one decides with a single entry of the
// journal. What needs nothing on disk (Prepare and Accept to others) leaves
// before the own records are written, so that the disks work at the same time.
type owner struct {
	*Cluster
	machine *paxos.Machine
	journal *journal
	decoded [2]decoded // the values seen last

	// Effects of the turn's steps.
	persist []paxos.Record
	own     []paxos.Message // of the machine to itself
	fx      paxos.Effects
	round   paxos.Ballot // that was begun last
	lost    []*attempt   // planned on a base that is not the newest any more

	tickets  uint64
	attempts map[uint64]*attempt
	reads    map[uint64]chan<- uint64
	refusals map[paxos.Refusal]time.Time
	told     map[uint64]uint64 // newest epoch that a broker said it has on disk
	turn     int               // whom the next beat is for

	retry   *time.Timer
	retries int  // without progress
	armed   bool // retry runs
	races   int  // lost in a row
}

// received is a message, or what a peer said its epoch is.
type received struct {
	message  paxos.Message
	bytes    int64
	observed uint64
}

// decoded is a value and what it says.
type decoded struct {
	value  []byte
	config *config.Config
	facts  paxos.Facts
}

// decode is the machine's Decode. The same few values are asked for again and again.
func (w *owner) decode(value []byte) (paxos.Facts, error) {
	d, err := w.look(value)
	if err != nil {
		return paxos.Facts{}, err
	}
	return d.facts, nil
}

func (w *owner) look(value []byte) (decoded, error) {
	for _, d := range w.decoded {
		if d.value != nil && len(d.value) == len(value) && string(d.value) == string(value) {
			return d, nil
		}
	}
	c, err := config.Decode(value)
	if err != nil {
		return decoded{}, err
	}
	if err := c.Validate(); err != nil {
		return decoded{}, err
	}
	return w.remember(value, c), nil
}

func (w *owner) remember(value []byte, c *config.Config) decoded {
	d := decoded{value: value, config: c, facts: factsOf(c)}
	w.decoded[0], w.decoded[1] = d, w.decoded[0]
	return d
}

func factsOf(c *config.Config) paxos.Facts {
	f := paxos.Facts{Cluster: c.ClusterID, Epoch: c.Epoch, Previous: paxos.Hash(c.Previous), Hash: paxos.Hash(c.Hash())}
	for i := range c.Brokers {
		m := paxos.Member{ID: c.Brokers[i].ID, Incarnation: c.Brokers[i].Incarnation}
		f.Members = append(f.Members, m)
		if slices.Contains(c.Council, m.ID) {
			f.Council = append(f.Council, m)
		}
	}
	return f
}

// run is the owner's goroutine.
func (w *owner) run() {
	err := w.loop()
	w.retry.Stop()
	w.shut(err)
	if err != nil && w.o.OnFatal != nil {
		w.o.OnFatal(err)
	}
	w.closeErr = w.journal.close()
	close(w.stopped)
}

func (w *owner) loop() error {
	beat := time.NewTicker(w.o.Times.Beat)
	defer beat.Stop()
	for {
		select {
		case <-w.ctx.Done():
			return nil
		case r := <-w.inbox:
			w.receive(r)
		case f := <-w.orders:
			f(w)
		case <-w.retry.C:
			w.again()
		case <-beat.C:
			w.beat()
		}
		w.gather()
		if err := w.flush(); err != nil {
			return err
		}
		w.arm()
	}
}

// gather takes what else waits, so that it shares the fsyncs.
func (w *owner) gather() {
	for range maxGather {
		if recordBytes(w.persist) > serveBytes {
			return
		}
		select {
		case r := <-w.inbox:
			w.receive(r)
		case f := <-w.orders:
			f(w)
		default:
			return
		}
	}
}

func recordBytes(records []paxos.Record) int {
	n := 0
	for i := range records {
		n += 64 + len(records[i].Value)
		for _, e := range records[i].Entries {
			n += 64 + len(e.Value) + len(e.Summary)
		}
	}
	return n
}

func (w *owner) receive(r received) {
	w.inboxBytes.Add(-r.bytes)
	if r.observed > 0 {
		w.take(w.machine.Observe(r.message.From, r.observed))
		return
	}
	m := r.message
	w.take(w.machine.Step(m))
	switch m.Kind {
	case paxos.LearnAck:
		w.hear(m.Epoch)
		w.told[m.From.ID] = max(w.told[m.From.ID], m.Epoch)
		if newest := w.machine.Newest(); m.Epoch < newest.Epoch {
			w.fx.Send = append(w.fx.Send, w.known(m.From)) // it then fetches
		}
	case paxos.Fetch, paxos.Prepare, paxos.Accept, paxos.Read:
		w.hear(max(m.Epoch, 1) - 1)
	case paxos.Nack:
		w.stats.nacks.Add(1)
	}
}

// take joins the effects of a step to the turn's.
func (w *owner) take(fx paxos.Effects) {
	w.persist = append(w.persist, fx.Persist...)
	for _, m := range fx.Send {
		if m.Kind == paxos.Prepare && m.Ballot != w.round {
			w.round = m.Ballot
			w.stats.rounds.Add(1)
		}
		if m.To.ID == w.self.ID && (m.To == w.self || m.To.Incarnation == "") {
			w.own = append(w.own, m)
		} else {
			w.fx.Send = append(w.fx.Send, m)
		}
	}
	t := &w.fx
	t.Serve = append(t.Serve, fx.Serve...)
	t.Learned = append(t.Learned, fx.Learned...)
	t.Outcomes = append(t.Outcomes, fx.Outcomes...)
	t.Reads = append(t.Reads, fx.Reads...)
	t.Refused = append(t.Refused, fx.Refused...)
	t.Preempted = t.Preempted || fx.Preempted
	if len(fx.Persist) > 0 || len(fx.Learned) > 0 || len(fx.Reads) > 0 {
		w.retries = 0
	}
}

// flush makes the turn's records durable and then shows its effects.
func (w *owner) flush() error {
	for {
		if len(w.persist) == 0 {
			if err := w.release(); err != nil {
				return err
			}
			if w.journal.dead > maxDead {
				if err := w.shorten(); err != nil {
					return err
				}
			}
		}
		if len(w.own) > 0 {
			own := w.own
			w.own = nil
			for _, m := range own {
				w.take(w.machine.Step(m))
			}
			continue
		}
		if len(w.persist) == 0 {
			return nil
		}
		if err := w.write(); err != nil {
			return err
		}
		w.persist = nil
	}
}

// write appends the turn's records to the journal.
func (w *owner) write() error {
	e := entryOf(w.persist)
	if err := w.journal.append(e); err != nil {
		return err
	}
	if e.kind == kindStep {
		w.journal.dead += int64(len(e.payload))
	}
	return nil
}

// release carries out the effects of steps whose records are durable.
func (w *owner) release() error {
	fx := w.fx
	w.fx = paxos.Effects{}
	if len(fx.Learned) > 0 {
		if err := w.learn(fx.Learned); err != nil {
			return err
		}
	}
	for _, m := range fx.Send {
		w.send(m)
	}
	for _, s := range fx.Serve {
		w.serve(s)
	}
	for _, o := range fx.Outcomes {
		w.outcome(o)
	}
	for _, a := range w.lost {
		a.settle(paxos.Lost, nil)
	}
	w.lost = nil
	for _, r := range fx.Reads {
		if done := w.reads[r.Ticket]; done != nil {
			delete(w.reads, r.Ticket)
			done <- r.Epoch
		}
	}
	for _, r := range fx.Refused {
		w.refused(r)
	}
	if fx.Preempted {
		w.races = min(w.races+1, 5)
		w.rearm(1 + time.Duration(w.o.Random(int64(w.o.Times.BackOff)<<(w.races-1))))
	}
	return nil
}

// learn shows newly decided epochs and shortens the journal when it is time.
func (w *owner) learn(entries []paxos.Entry) error {
	last := &entries[len(entries)-1]
	d, err := w.look(last.Value)
	if err != nil {
		return fmt.Errorf("epoch %d: %w", last.Epoch, err)
	}
	headers := make([]Header, len(entries))
	for i := range entries {
		if i == len(entries)-1 {
			headers[i] = headerOf(d.config, d.config.Hash())
		} else if headers[i], err = headerIn(&entries[i]); err != nil {
			return fmt.Errorf("epoch %d: %w", entries[i].Epoch, err)
		}
		if len(entries) > 1 { // the history must not keep a whole message for the sake of one value
			entries[i].Value = slices.Clone(entries[i].Value)
		}
	}
	if err := w.publish(entries, headers, d.config); err != nil {
		return fmt.Errorf("epoch %d: %w", last.Epoch, err)
	}
	w.races = 0
	if w.history.surplus() >= KeepValues {
		return w.shorten()
	}
	return nil
}

func (w *owner) outcome(o paxos.Outcome) {
	a := w.attempts[o.Ticket]
	if a == nil {
		return
	}
	switch o.Result {
	case paxos.Chosen:
		w.stats.chosen.Add(1)
	case paxos.Lost:
		w.stats.lost.Add(1)
	}
	if o.Result != paxos.Chosen {
		delete(w.attempts, o.Ticket)
	}
	a.settle(o.Result, nil)
}

func (w *owner) read(done chan<- uint64) (uint64, error) {
	w.tickets++
	fx, err := w.machine.Read(w.tickets)
	if err != nil {
		return 0, err
	}
	w.reads[w.tickets] = done
	w.take(fx)
	return w.tickets, nil
}

// propose starts an attempt, or settles it when that is impossible.
func (w *owner) propose(a *attempt) {
	w.remember(a.value, a.config)
	w.tickets++
	a.ticket = w.tickets
	fx, err := w.machine.Propose(a.ticket, a.base, a.value)
	switch {
	case errors.Is(err, paxos.ErrStaleBase):
		w.lost = append(w.lost, a) // told after the turn, when the newer base is shown
	case err != nil:
		a.settle(0, err)
	default:
		w.attempts[a.ticket] = a
		w.take(fx)
	}
}

func (w *owner) abandon(ticket uint64) {
	delete(w.attempts, ticket)
	delete(w.reads, ticket)
	w.take(w.machine.Abandon(ticket))
}

// send sends a message to another broker. Before epoch 1 nobody knows brokers by
// anything but their addresses.
func (w *owner) send(m paxos.Message) {
	b := encodeMessage(&m)
	if m.Epoch <= 1 && w.o.Ask != nil && w.initial != nil {
		if to := w.initial.Broker(m.To.ID); to != nil && to.Addresses.Peer != "" {
			w.tell(to.Addresses.Peer, b)
		}
	}
	if w.o.Transport != nil {
		w.o.Transport.Send(m.To.ID, b)
	}
}

// tell hands a message to whoever is at an address; like any message it may be lost.
func (w *owner) tell(address string, b []byte) {
	select {
	case w.asking <- struct{}{}:
	default:
		return
	}
	w.running.Go(func() {
		defer func() { <-w.asking }()
		ctx, cancel := context.WithTimeout(w.ctx, askTimeout)
		defer cancel()
		_, _ = w.o.Ask(ctx, address, SubjectMessage, b)
	})
}

// serve sends a peer what the history holds.
func (w *owner) serve(s paxos.Serve) {
	if s.To.ID == w.self.ID || s.From == 0 {
		return
	}
	w.mu.Lock()
	entries := w.history.from(s.From)
	w.mu.Unlock()
	if len(entries) > 0 {
		w.send(w.machine.Decided(s.To, entries))
	}
}

// known tells a peer which epoch is on disk here once the turn's records are.
func (w *owner) known(to paxos.Member) paxos.Message {
	n := w.machine.Newest()
	return paxos.Message{Kind: paxos.LearnAck, From: w.self, To: to, Cluster: w.machine.Facts().Cluster,
		Epoch: n.Epoch, Previous: n.Previous, Hash: n.Hash}
}

// beat tells one other broker which epoch is known here, each in turn.
func (w *owner) beat() {
	f := w.machine.Facts()
	if f.Epoch == 0 || len(f.Members) < 2 {
		return
	}
	for range f.Members {
		w.turn++
		if to := f.Members[w.turn%len(f.Members)]; to != w.self {
			w.fx.Send = append(w.fx.Send, w.known(to))
			break
		}
	}
	w.keepCouncil()
}

// refused reports what people should see, not too often.
func (w *owner) refused(r paxos.Refusal) {
	const quiet = 10 * time.Second
	if w.o.OnRefused == nil {
		return
	}
	key := paxos.Refusal{By: r.By, Sender: r.Sender, Reason: r.Reason}
	now := time.Now()
	if last, ok := w.refusals[key]; ok && now.Sub(last) < quiet {
		return
	}
	if len(w.refusals) >= maxRefusals {
		clear(w.refusals)
	}
	w.refusals[key] = now
	w.o.OnRefused(r)
}

// again retries what has had no answer.
func (w *owner) again() {
	w.armed = false
	w.retries++
	w.take(w.machine.Retry())
}

// arm lets the retry timer run while something waits.
func (w *owner) arm() {
	if w.armed || !w.machine.Waiting() {
		return
	}
	t := &w.o.Times
	d := min(t.Retry<<min(w.retries, 6), t.Slowest)
	w.rearm(d/2 + time.Duration(w.o.Random(int64(d))))
}

func (w *owner) rearm(d time.Duration) {
	w.retry.Reset(d)
	w.armed = true
}
