package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

// groupsProof measures what members that come and go do to those who stay.
type groupsProof struct {
	partitions int32
	rate       float64 // records a second of each partition
	session    time.Duration
	steady     time.Duration
	slack      time.Duration
	proofFlags
}

const (
	rebalanceTopic   = "moved"
	rebalanceGroup   = "g"
	rebalanceMembers = 3 // at the start
	rebalanceLimit   = 2 * time.Minute
	rebalanceLook    = 50 * time.Millisecond
	// rebalanceTail is how long records are looked at after everybody has his share.
	rebalanceTail = time.Second
	// movedLimit is how long a partition may stand still that changes hands, beside the session of a member that has died.
	movedLimit = 500 * time.Millisecond
	// noGap is how long a record may wait on a partition that doesn't move, or twice what the longest wait was when nothing
	// happened: a process that starts or dies takes time of the processors.
	noGap = 200 * time.Millisecond
)

// rebalanceResult is what one run found.
type rebalanceResult struct {
	Partitions int32          `json:"partitions"`
	SessionMS  int64          `json:"session_ms"`
	SteadyMS   float64        `json:"steady_gap_ms"` // the longest wait while nothing happened
	Events     []rebalanceRow `json:"events"`
	Records    int            `json:"records"`
	Again      int            `json:"handled_again"`
	Stale      int            `json:"handled_under_an_old_token"` // by the member that was paused, for which the token is
	Refused    int            `json:"commits_refused"`            // of that member, under its old tokens
	Taken      int            `json:"commits_taken"`
	Unhandled  int64          `json:"unhandled"`
}

func (a *app) groupsCommand() *cobra.Command {
	f := groupsProof{partitions: 64, rate: 5, session: 3 * time.Second, steady: 10 * time.Second}
	cmd := &cobra.Command{
		Use: "groups", Short: "Measures how long partitions stand still when members of a group come and go", Args: cobra.NoArgs,
		Long: `Starts three brokers and the members of an exclusive group as processes, on a topic with three replicas and a
steady load, and then: a member joins, one leaves, one is killed with SIGKILL, one is stopped with SIGSTOP for longer
than its session and goes on. Of each event it tells the longest time that a record waited: on partitions that changed
hands, which is allowed 500 ms, or the session and 500 ms after a death; and on those that did not, where nothing should be seen: 200 ms,
or twice what was the longest before. While the stopped member sleeps, commits under its tokens are tried: all must be refused.
Every record must have been handled at the end. Exit 1 if anything is wrong.`,
		Example: "  go run ./cmd/parley proof groups\n  parley proof groups --partitions 8 --slack 2s -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.partitions < 4 || f.rate <= 0 || f.slack < 0 || f.steady < 0 {
				return usagef("--partitions %d --rate %v --steady %s --slack %s: want 4 or more, above 0, 0s or more, 0s or more", f.partitions, f.rate, f.steady, f.slack)
			}
			return a.proveGroups(cmd.Context(), &f)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Int32Var(&f.partitions, "partitions", f.partitions, "so `many` partitions")
	flags.Float64Var(&f.rate, "rate", f.rate, "`records` a second of each partition")
	flags.DurationVar(&f.session, "session", f.session, "the members' `session`")
	flags.DurationVar(&f.steady, "steady", f.steady, "how `long` it is watched before anything happens")
	flags.DurationVar(&f.slack, "slack", f.slack, "`time` that is added to what is allowed, on a busy machine")
	flags.StringVar(&f.parleyd, "parleyd", "", "the parleyd `binary` (default: built from this source tree)")
	flags.BoolVar(&f.keep, "keep", false, "keep the working directory; it stays after a failure in any case")
	return cmd
}

// rebalance is one run.
type rebalance struct {
	a       *app
	f       *groupsProof
	c       *client.Client
	server  string
	account *handover
	members []*memberProcess // that live
	all     []*memberProcess
	sent    []atomic.Int64 // acked, by partition
	result  rebalanceResult
}

func (a *app) proveGroups(ctx context.Context, f *groupsProof) (err error) {
	dir, done, err := a.workingDirectory(f.keep)
	if err != nil {
		return err
	}
	defer func() { done(err) }()
	command, err := a.parleyd(ctx, &f.proofFlags, dir)
	if err != nil {
		return err
	}
	brokers, server, stop, err := threeBrokers(ctx, command, dir)
	if err != nil {
		return err
	}
	defer stop()
	r := &rebalance{a: a, f: f, server: server, account: newHandover(f.partitions), sent: make([]atomic.Int64, f.partitions)}
	r.result.Partitions, r.result.SessionMS = f.partitions, f.session.Milliseconds()
	if r.c, err = dial(ctx, connection{Server: r.server}, createdLimit); err != nil {
		return err
	}
	defer closeClient(r.c)
	if _, err := r.c.CreateTopic(ctx, client.TopicSpec{Name: rebalanceTopic, Partitions: f.partitions, Replicas: 3}); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, createdLimit)
	defer cancel()
	if err := awaitLed(limited, r.c, int(f.partitions), brokers...); err != nil {
		return err
	}
	if err := r.run(ctx); err != nil {
		return err
	}
	return r.print()
}

func (r *rebalance) run(ctx context.Context) error {
	loading, stop := context.WithCancel(ctx)
	var load sync.WaitGroup
	var loadErr error
	load.Go(func() { loadErr = r.load(loading) })
	defer func() {
		stop()
		load.Wait()
		for _, m := range r.all {
			m.signal(syscall.SIGCONT)
			m.kill()
		}
	}()
	for i := range rebalanceMembers {
		if _, err := r.join(ctx, fmt.Sprintf("m%d", i+1)); err != nil {
			return err
		}
	}
	if err := r.settled(ctx); err != nil {
		return err
	}
	if err := r.leadersRest(ctx); err != nil {
		return err
	}
	if err := r.watch(ctx); err != nil {
		return err
	}
	if err := r.events(ctx); err != nil {
		return err
	}
	stop()
	load.Wait()
	if err := r.drained(ctx); err != nil {
		return errors.Join(err, loadErr)
	}
	return loadErr
}

// load publishes to all partitions in turn, at a steady rate.
func (r *rebalance) load(ctx context.Context) error {
	p, err := r.c.NewProducer(ctx, rebalanceTopic, client.PartitionBy(client.ByRecord))
	if err != nil {
		return err
	}
	every := time.Duration(float64(time.Second) / r.f.rate / float64(r.f.partitions))
	pace, value := &pacer{every: max(every, 1), begin: time.Now()}, make([]byte, 8)
	var failed atomic.Pointer[error]
	for n := 0; ctx.Err() == nil; n++ {
		part := int32(n % int(r.f.partitions))
		binary.LittleEndian.PutUint64(value, uint64(pace.wait(ctx.Done()).UnixNano()))
		if ctx.Err() != nil {
			break
		}
		err := p.SendFunc(ctx, client.Record{Value: value, Partition: part}, func(ack client.Ack, err error) {
			if err != nil {
				failed.CompareAndSwap(nil, &err)
			} else {
				r.sent[part].Store(ack.Offset + 1)
			}
		})
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("publish the load: %w", err)
		}
	}
	err = p.Close(context.WithoutCancel(ctx))
	if e := failed.Load(); e != nil {
		err = errors.Join(err, *e)
	}
	return err
}

func (r *rebalance) join(ctx context.Context, name string) (*memberProcess, error) {
	m, err := startMember(name, r.server, r.f.session, r.account)
	if err != nil {
		return nil, err
	}
	r.all, r.members = append(r.all, m), append(r.members, m)
	limited, cancel := context.WithTimeout(ctx, rebalanceLimit)
	defer cancel()
	return m, m.await(limited)
}

func (r *rebalance) names() (names []string) {
	for _, m := range r.members {
		names = append(names, m.name)
	}
	return names
}

// settled waits until each member has its share, as the records show that are handled.
func (r *rebalance) settled(ctx context.Context) error {
	return r.until(ctx, func() string {
		if owners := r.account.owners(); !even(owners, r.names()) {
			return fmt.Sprintf("members %v have %v", r.names(), owners)
		}
		return ""
	})
}

// leadersRest waits until the preferred replicas lead: a young cluster hands leaderships over once, and the new leader of a group's anchor
// gives each member a whole session, also one that has just died.
func (r *rebalance) leadersRest(ctx context.Context) error {
	return r.until(ctx, func() string {
		d, err := r.c.DescribeTopic(ctx, rebalanceTopic)
		if err != nil {
			return err.Error()
		}
		for _, p := range d.Partitions {
			if len(p.Replicas) == 0 || p.Leader != p.Replicas[0] {
				return fmt.Sprintf("partition %d is led by %q, not by the first of %v", p.Partition, p.Leader, p.Replicas)
			}
		}
		return ""
	})
}

func (r *rebalance) drained(ctx context.Context) error {
	sent := make([]int64, len(r.sent))
	for i := range r.sent {
		sent[i] = r.sent[i].Load()
	}
	err := r.until(ctx, func() string {
		if r.result.Unhandled = r.account.behind(sent); r.result.Unhandled > 0 {
			return fmt.Sprintf("%d records were not handled", r.result.Unhandled)
		}
		return ""
	})
	r.result.Records, r.result.Again, r.result.Stale = r.account.count()
	return err
}

// until waits until there is nothing that keeps a condition from being true.
func (r *rebalance) until(ctx context.Context, missing func() string) error {
	limited, cancel := context.WithTimeout(ctx, rebalanceLimit)
	defer cancel()
	tick := time.NewTicker(rebalanceLook)
	defer tick.Stop()
	for {
		why := missing()
		if why == "" {
			return nil
		}
		select {
		case <-tick.C:
		case <-limited.Done():
			return fmt.Errorf("%w after %s: %s", limited.Err(), rebalanceLimit, why)
		}
	}
}

// watch measures how long records wait while nothing happens.
func (r *rebalance) watch(ctx context.Context) error {
	if err := sleep(ctx, rebalanceTail); err != nil {
		return err
	}
	from := time.Now()
	if err := sleep(ctx, r.f.steady); err != nil {
		return err
	}
	for i := range r.account.parts {
		r.result.SteadyMS = max(r.result.SteadyMS, milliseconds(r.account.gap(i, from, time.Now())))
	}
	fmt.Fprintf(r.a.stderr, "%d members have their shares; while nothing happens a record waits %.0f ms at most\n", len(r.members), r.result.SteadyMS)
	return nil
}

// event makes something happen, waits until everybody has his share again, and notes how long records waited meanwhile.
func (r *rebalance) event(ctx context.Context, what string, moved time.Duration, do func() error) error {
	before, from := r.account.owners(), time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := r.settled(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	after := r.account.owners()
	if err := sleep(ctx, rebalanceTail); err != nil {
		return err
	}
	unmoved := max(noGap, time.Duration(2*r.result.SteadyMS*float64(time.Millisecond)))
	row := r.account.judge(what, before, after, from, time.Now(), moved+r.f.slack, unmoved+r.f.slack)
	r.result.Events = append(r.result.Events, row)
	fmt.Fprintf(r.a.stderr, "%s: %d partitions moved and stood still for %.0f ms at most, on the other %d records waited %.0f ms\n",
		what, row.Moved, row.MovedMS, row.Unmoved, row.UnmovedMS)
	return nil
}

// gone takes a member out of those that live.
func (r *rebalance) gone(m *memberProcess) {
	r.members = slices.DeleteFunc(r.members, func(o *memberProcess) bool { return o == m })
}

func (r *rebalance) events(ctx context.Context) error {
	f := r.f
	if err := r.event(ctx, "a member joins", movedLimit, func() error {
		_, err := r.join(ctx, "m4")
		return err
	}); err != nil {
		return err
	}
	if err := r.event(ctx, "a member leaves", movedLimit, func() error {
		m := r.members[0]
		r.gone(m)
		limited, cancel := context.WithTimeout(ctx, memberStop)
		defer cancel()
		return m.leave(limited)
	}); err != nil {
		return err
	}
	if err := r.event(ctx, "a member is killed", f.session+movedLimit, func() error {
		m := r.members[0]
		r.gone(m)
		m.kill()
		return nil
	}); err != nil {
		return err
	}
	if _, err := r.join(ctx, "m5"); err != nil {
		return err
	}
	if err := r.settled(ctx); err != nil {
		return err
	}
	paused := r.members[0]
	id, err := r.memberID(ctx, paused.name)
	if err != nil {
		return err
	}
	had, tokens := r.account.owners(), r.account.tokens()
	if err := r.event(ctx, "a member is stopped", f.session+movedLimit, func() error {
		r.gone(paused)
		paused.signal(syscall.SIGSTOP)
		return nil
	}); err != nil {
		return err
	}
	for part, owner := range had {
		if owner == paused.name {
			if err := r.haunt(ctx, id, int32(part), tokens[part]); err != nil {
				return err
			}
		}
	}
	return r.event(ctx, "the stopped one goes on", movedLimit, func() error {
		r.members = append(r.members, paused)
		paused.signal(syscall.SIGCONT)
		return nil
	})
}

// memberID finds out by which id the brokers know a member.
func (r *rebalance) memberID(ctx context.Context, name string) (string, error) {
	d, err := r.c.DescribeGroup(ctx, rebalanceTopic, rebalanceGroup)
	if err != nil {
		return "", err
	}
	for _, m := range d.Members {
		if m.Name == name {
			return m.ID, nil
		}
	}
	return "", fmt.Errorf("group %s has no member %s: %+v", rebalanceGroup, name, d.Members)
}

// haunt commits for the member that sleeps, under the token that it had.
func (r *rebalance) haunt(ctx context.Context, id string, part int32, token uint64) error {
	nc, err := nats.Connect(r.server, nats.Name("proof-groups"))
	if err != nil {
		return fmt.Errorf("connect plain client: %w", err)
	}
	defer nc.Close()
	body, err := json.Marshal(wire.GroupCommitRequest{Group: rebalanceGroup, Member: id, Token: token, Offset: r.sent[part].Load()})
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, memberStop)
	defer cancel()
	answer, err := nc.RequestWithContext(limited, wire.GroupCommit+rebalanceTopic+"."+strconv.Itoa(int(part)), body)
	if err != nil {
		return fmt.Errorf("commit under an old token: %w", err)
	}
	err = decodeAck(answer.Data, &wire.GroupCommitted{})
	var e *client.Error
	switch {
	case err == nil:
		r.result.Taken++
	case errors.As(err, &e) && e.Reason == wire.ReasonLeaseLost:
		r.result.Refused++
	default:
		return fmt.Errorf("commit under an old token: %w", err)
	}
	return nil
}

func (r *rebalance) print() error {
	res := &r.result
	if r.a.json() {
		if err := r.a.printJSON(res); err != nil {
			return err
		}
	} else {
		t := newTable("EVENT", "MOVED", "STOOD STILL", "ALLOWED", "UNMOVED", "LONGEST WAIT", "ALLOWED")
		ms := func(v float64) cell { return rightText(fmt.Sprintf("%.0f ms", v)) }
		n := func(v int) cell { return rightText(strconv.Itoa(v)) }
		t.row(str("nothing"), n(0), str(""), str(""), n(int(res.Partitions)), ms(res.SteadyMS), str(""))
		for _, e := range res.Events {
			t.row(str(e.Event), n(e.Moved), ms(e.MovedMS), ms(e.MovedMost), n(e.Unmoved), ms(e.UnmovedMS), ms(e.UnmovedMost))
		}
		if err := r.a.printTable(t); err != nil {
			return err
		}
		fmt.Fprintf(r.a.stdout, "%d records, all handled, %d more than once; of the member that was stopped %d commits were refused, and it handled %d records under an old token\n",
			res.Records, res.Again, res.Refused, res.Stale)
	}
	switch slow := slices.IndexFunc(res.Events, func(e rebalanceRow) bool { return !e.WithinLimits }); {
	case res.Taken > 0 || res.Refused == 0:
		return fmt.Errorf("%d commits under old tokens were taken, %d refused", res.Taken, res.Refused)
	case slow >= 0:
		return fmt.Errorf("%s: longer than what is allowed", res.Events[slow].Event)
	}
	return nil
}
