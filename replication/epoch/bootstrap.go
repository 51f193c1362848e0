package epoch

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

// Subjects of what brokers ask one another by address. Whoever carries requests hands
// them to Answer.
const (
	SubjectHello   = "epoch.hello"   // who are you, and what do you know?
	SubjectMessage = "epoch.message" // a message of Paxos, while brokers have no ids
	SubjectJoin    = "epoch.join"    // admit me
)

// Subjects that Answer answers.
func Subjects() []string { return []string{SubjectHello, SubjectMessage, SubjectJoin} }

const (
	askTimeout   = 5 * time.Second
	formTimeout  = 10 * time.Second // of one attempt at epoch 1
	maxAddresses = config.MaxInitial + 32
)

// hello is what a broker says of itself, both as the question and in the answer.
type hello struct {
	Cluster string        `json:"cluster"`
	Epoch   uint64        `json:"epoch"`
	Self    config.Broker `json:"self"`
	Initial []Listed      `json:"initial,omitempty"` // at epoch 0
	Level   uint32        `json:"level,omitempty"`   // the newest feature level that it knows
	// Of an answer: whether the newest epoch names the one who asked, and, if so,
	// what it doesn't know yet.
	Named   bool   `json:"named,omitempty"`
	Decided []byte `json:"decided,omitempty"`
}

// Answer answers a request of the broker with the incarnation, as it was proved.
func (c *Cluster) Answer(ctx context.Context, incarnation, subject string, req []byte) ([]byte, error) {
	if len(req) > MaxMessage {
		return nil, fmt.Errorf("answer %s: %d bytes, at most %d are allowed", subject, len(req), MaxMessage)
	}
	switch subject {
	case SubjectHello:
		return c.answerHello(ctx, incarnation, req)
	case SubjectMessage:
		return nil, c.Deliver(0, incarnation, req)
	case SubjectJoin:
		return c.answerJoin(ctx, incarnation, req)
	}
	return nil, fmt.Errorf("answer %s: unknown subject", subject)
}

func (c *Cluster) introduce() hello {
	cur := c.Current()
	h := hello{Cluster: cur.ClusterID, Epoch: cur.Epoch, Self: c.o.Self, Level: c.o.Level}
	h.Self.ID = c.self.ID
	if cur.Epoch == 0 {
		h.Initial = listOf(cur)
	}
	return h
}

func (c *Cluster) answerHello(ctx context.Context, incarnation string, req []byte) ([]byte, error) {
	var q hello
	if err := json.Unmarshal(req, &q); err != nil {
		return nil, fmt.Errorf("answer %s: %w", SubjectHello, err)
	}
	if q.Self.Incarnation != incarnation {
		return nil, fmt.Errorf("answer %s: %w: %q", SubjectHello, ErrForged, q.Self.Incarnation)
	}
	var a hello
	ok := c.order(ctx, func(w *owner) {
		a = c.introduce()
		if n := w.machine.Newest().Epoch; n != a.Epoch {
			return // in the middle of a turn: the next question finds it done
		}
		to := paxos.Member{ID: q.Self.ID, Incarnation: incarnation}
		if a.Named = a.Epoch > 0 && names(c.Current(), to); a.Named && q.Epoch < a.Epoch {
			m := w.machine.Decided(to, w.history.from(q.Epoch+1))
			a.Decided = encodeMessage(&m)
		}
	})
	if !ok {
		return nil, c.gone(ctx, "answer "+SubjectHello)
	}
	return json.Marshal(a)
}

// Bootstrap returns when a decided epoch names this data directory. Until then it
// asks all brokers of epoch 0, and the Seeds, what they know:
//
//   - all are empty and were given the same list: the one with the lowest id has
//     epoch 1 decided, which needs them all;
//   - one knows a later epoch: it is fetched, if that names this directory;
//     otherwise ErrWiped;
//   - one was given another list: ErrDifferentList, and how they differ;
//   - one doesn't answer: it waits, and says for whom by OnWait.
//
// A lone broker has nobody to ask and decides epoch 1 at once.
func (c *Cluster) Bootstrap(ctx context.Context) error {
	waits := ""
	for {
		cur := c.Current()
		if cur.Epoch > 0 && names(cur, c.self) {
			return nil
		}
		if b := cur.Broker(c.self.ID); cur.Epoch > 0 && b != nil {
			return fmt.Errorf("%w: epoch %d of cluster %s knows broker %s as incarnation %s, this directory is %s; "+
				"an emptied disk has to join anew (--join)", ErrWiped, cur.Epoch, cur.ClusterID, b.Name, b.Incarnation, c.self.Incarnation)
		}
		peers, missing, err := c.ask(ctx, cur)
		if err != nil {
			return err
		}
		if why := strings.Join(missing, "; "); why != waits {
			if waits = why; c.o.OnWait != nil {
				c.o.OnWait(why)
			}
		}
		if cur.Epoch == 0 && len(missing) == 0 && c.Current().Epoch == 0 && c.self.ID == cur.Brokers[0].ID {
			if err := c.form(ctx, cur, peers); err != nil {
				return err
			}
			continue
		}
		if err := c.pause(ctx); err != nil {
			return err
		}
	}
}

// pause waits until it is time to ask again, or a new epoch is there.
func (c *Cluster) pause(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := c.Watch(ctx)
	t := time.NewTimer(c.o.Times.Hello)
	defer t.Stop()
	for n := 0; ; n++ {
		select {
		case _, open := <-changes:
			if !open {
				return c.gone(ctx, "form a cluster")
			}
			if n > 0 {
				return nil
			}
		case <-t.C:
			return nil
		}
	}
}

// ask asks everybody once. missing says of each that gave no answer why.
func (c *Cluster) ask(ctx context.Context, cur *config.Config) (peers []hello, missing []string, err error) {
	type question struct {
		listed  *config.Broker // nil: a seed
		address string
		answer  hello
		err     error
	}
	var questions []*question
	if cur.Epoch == 0 {
		for i := range cur.Brokers {
			if b := &cur.Brokers[i]; b.ID != c.self.ID {
				questions = append(questions, &question{listed: b, address: b.Addresses.Peer})
			}
		}
	}
	for _, s := range c.o.Seeds {
		if len(questions) < maxAddresses {
			questions = append(questions, &question{address: s})
		}
	}
	if len(questions) > 0 && c.o.Ask == nil {
		return nil, nil, errors.New("form a cluster: there is no way to ask other brokers")
	}
	req, err := json.Marshal(c.introduce())
	if err != nil {
		return nil, nil, fmt.Errorf("form a cluster: %w", err)
	}
	var wg sync.WaitGroup
	for _, q := range questions {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			reply, err := c.o.Ask(ctx, q.address, SubjectHello, req)
			if err == nil {
				err = json.Unmarshal(reply, &q.answer)
			}
			q.err = err
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("form a cluster: %w", err)
	}
	for _, q := range questions {
		who := q.address
		if q.listed != nil {
			who = fmt.Sprintf("broker %s at %s", q.listed.Name, q.address)
		}
		if q.err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", who, q.err))
			continue
		}
		if err := c.judge(cur, q.listed, who, &q.answer); err != nil {
			return nil, nil, err
		}
		peers = append(peers, q.answer)
	}
	return peers, missing, nil
}

// judge takes an answer, or says why this broker can't go on.
func (c *Cluster) judge(cur *config.Config, listed *config.Broker, who string, a *hello) error {
	switch {
	case a.Epoch > 0 && !a.Named:
		return fmt.Errorf("%w: %s belongs to cluster %s, which has decided epoch %d and doesn't know this directory (incarnation %s); "+
			"an emptied disk, like a new broker, has to join it (--join)", ErrWiped, who, a.Cluster, a.Epoch, c.self.Incarnation)
	case a.Epoch > 0:
		if len(a.Decided) > 0 {
			return c.Deliver(a.Self.ID, a.Self.Incarnation, a.Decided)
		}
		return nil
	case listed == nil:
		return nil // a seed that has nothing to say yet
	case a.Self.Incarnation == c.self.Incarnation:
		return fmt.Errorf("form a cluster: %s has the incarnation of this broker: the address is this broker's own, or the data directory was copied", who)
	}
	if d := differ(a.Initial, listOf(cur)); d != "" {
		return fmt.Errorf("%w: %s was given another one: %s", ErrDifferentList, who, d)
	}
	if a.Self.Name != listed.Name {
		return fmt.Errorf("%w: at the address of %s answers a broker that is named %s", ErrDifferentList, who, a.Self.Name)
	}
	return nil
}

// form has epoch 1 decided. That it comes to nothing, because somebody went away
// again, is no error.
func (c *Cluster) form(ctx context.Context, base *config.Config, peers []hello) error {
	limited, cancel := context.WithTimeout(ctx, formTimeout)
	defer cancel()
	_, err := c.Propose(limited, func(next *config.Config) error {
		if next.Epoch != 1 {
			return ErrUnchanged
		}
		next.ClusterID, next.FeatureLevel = randomID(), config.Level
		for i := range next.Brokers {
			b := &next.Brokers[i]
			known, level := c.o.Self, c.o.Level
			for _, p := range peers {
				if p.Self.Name == b.Name {
					known, level = p.Self, p.Level
				}
			}
			next.FeatureLevel = min(next.FeatureLevel, level)
			known.ID, known.Name, known.State = b.ID, b.Name, config.Active
			known.Weight = max(known.Weight, 1)
			if known.Addresses.Peer == "" {
				known.Addresses.Peer = b.Addresses.Peer
			}
			*b = known
		}
		next.Council = next.Council[:config.CouncilSize(len(next.Brokers))]
		next.Change = fmt.Sprintf("cluster formed by %d brokers", len(next.Brokers))
		return nil
	})
	switch {
	case err == nil || errors.Is(err, ErrUnchanged), errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return nil
	case errors.Is(err, ErrNotNamed):
		return nil // epoch 1 is known by now, and the caller looks at it
	}
	return fmt.Errorf("form a cluster: %w", err)
}

// randomID is 128 random bits, as text that can be a token of a subject.
func randomID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
