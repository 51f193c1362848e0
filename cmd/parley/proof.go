package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

// proofFlags are those of parley proof kill.
type proofFlags struct {
	rounds  int
	lines   int64
	file    string
	seed    uint64
	parleyd string
	keep    bool
}

func (a *app) proofCommand() *cobra.Command {
	parent := &cobra.Command{Use: "proof", Hidden: true, Short: "Proofs that take minutes", RunE: needsSubcommand}
	f := proofFlags{rounds: 20, lines: 1_000_000}
	cmd := &cobra.Command{
		Use: "kill", Short: "Publishes a file, kills the broker in the middle, compares what comes back; many times", Args: cobra.NoArgs,
		Long: `Round after round, on one data directory: a text file goes through "parley pub" into a
new topic; at a random moment parleyd is killed with SIGKILL and started again; "parley sub
--from earliest --until-end" reads everything back. Each line must be there, once, in
order, and log entries must have been applied again after the kill, or the replay path
was never run. Exit 1 if anything is wrong.`,
		Example: "  go run ./cmd/parley proof kill --rounds 20 --lines 1000000\n  parley proof kill --file access.log --seed 7",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.rounds < 1 || f.lines < 1 {
				return usagef("--rounds %d --lines %d: want 1 or more", f.rounds, f.lines)
			}
			if !cmd.Flags().Changed("seed") {
				f.seed = rand.Uint64() % 1_000_000
			}
			return a.proveKill(cmd.Context(), &f)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntVar(&f.rounds, "rounds", f.rounds, "so `many` kills")
	flags.Int64Var(&f.lines, "lines", f.lines, "`lines` of the generated file")
	flags.StringVar(&f.file, "file", "", "publish this text `file` instead")
	flags.Uint64Var(&f.seed, "seed", 0, "`seed` of the file and the moments (default: a random one, printed)")
	flags.StringVar(&f.parleyd, "parleyd", "", "the parleyd `binary` (default: built from this source tree)")
	flags.BoolVar(&f.keep, "keep", false, "keep the working directory")
	parent.AddCommand(cmd, a.chaosCommand(), a.failoverCommand(), a.epochsCommand(), a.partitionsCommand(), a.joinCommand(), a.corruptionCommand(),
		a.groupsCommand(), a.groupMemberCommand())
	return parent
}

// killProof is one run of proof kill.
type killProof struct {
	a      *app
	dir    string
	self   string // this program, which publishes and reads
	broker *brokerProcess
	rng    *rand.Rand
	input  string
	lines  int64
}

func (a *app) proveKill(ctx context.Context, f *proofFlags) error {
	dir, err := os.MkdirTemp("", "parley-proof-")
	if err != nil {
		return fmt.Errorf("make a working directory: %w", err)
	}
	if !f.keep {
		defer func() {
			if err := os.RemoveAll(dir); err != nil {
				fmt.Fprintf(a.stderr, "parley: remove the working directory: %v\n", err)
			}
		}()
	}
	fmt.Fprintf(a.stderr, "seed %d, working directory %s\n", f.seed, dir)
	p := &killProof{a: a, dir: dir, rng: rand.New(rand.NewPCG(f.seed, f.seed)), input: f.file}
	if p.self, err = os.Executable(); err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	if p.input == "" {
		p.input = filepath.Join(dir, "lines.txt")
		if err := writeLines(p.input, f.lines, p.rng); err != nil {
			return err
		}
	}
	if p.lines, err = countLines(p.input); err != nil {
		return err
	}
	command, err := a.parleyd(ctx, f, dir)
	if err != nil {
		return err
	}
	if p.broker, err = newBrokerProcess(command, filepath.Join(dir, "data")); err != nil {
		return err
	}
	defer p.broker.kill()
	if err := p.broker.start(ctx); err != nil {
		return err
	}
	return p.rounds(ctx, f.rounds)
}

// parleyd is the command that runs the broker under test.
func (a *app) parleyd(ctx context.Context, f *proofFlags, dir string) ([]string, error) {
	switch f.parleyd {
	case "":
		path := filepath.Join(dir, "parleyd")
		build := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/parleymq/parley/cmd/parleyd")
		build.Stderr = a.stderr
		if err := build.Run(); err != nil {
			return nil, fmt.Errorf("build parleyd (give a binary with --parleyd outside the source tree): %w", err)
		}
		return []string{path}, nil
	case ownBrokerName:
		return ownBroker()
	}
	path, err := filepath.Abs(f.parleyd)
	return []string{path}, err
}

// ownBrokerName in place of a parleyd binary means this program's own broker:
// the short form of the proof in go test builds nothing.
const ownBrokerName = "self"

// killRound is what one round found.
type killRound struct {
	Round int `json:"round"`
	verdict
	Failed    int64   `json:"failed"`
	KilledAt  int64   `json:"killed_at"` // records in the log when the broker was killed
	Reapplied int64   `json:"reapplied"`
	Recovery  float64 `json:"recovery_seconds"` // from start to ready
	Seconds   float64 `json:"seconds"`
}

func (p *killProof) rounds(ctx context.Context, rounds int) error {
	var sum killRound
	t := newTable("ROUND", "LINES", "READ BACK", "FAILED", "LOST", "DUPLICATED", "REORDERED", "KILLED AT", "REAPPLIED", "READY AFTER", "SECONDS")
	for n := 1; n <= rounds; n++ {
		r, err := p.round(ctx, n)
		if err != nil {
			return fmt.Errorf("round %d: %w", n, err)
		}
		sum.Acked, sum.Read, sum.Failed = sum.Acked+r.Acked, sum.Read+r.Read, sum.Failed+r.Failed
		sum.Lost, sum.Duplicated, sum.Reordered = sum.Lost+r.Lost, sum.Duplicated+r.Duplicated, sum.Reordered+r.Reordered
		sum.Reapplied += r.Reapplied
		sum.Seconds += r.Seconds
		if p.a.json() {
			if err := p.a.printJSON(r); err != nil {
				return err
			}
		} else {
			fmt.Fprintf(p.a.stderr, "round %d of %d: lost %d, duplicated %d, reordered %d, failed %d; killed at %s, %s entries applied again, ready after %.2f s\n",
				n, rounds, r.Lost, r.Duplicated, r.Reordered, r.Failed, grouped(fmt.Sprint(r.KilledAt)), grouped(fmt.Sprint(r.Reapplied)), r.Recovery)
		}
		t.row(num(r.Round), num(r.Acked), num(r.Read), num(r.Failed), num(r.Lost), num(r.Duplicated), num(r.Reordered), num(r.KilledAt),
			num(r.Reapplied), rightText(fmt.Sprintf("%.2f s", r.Recovery)), rightText(fmt.Sprintf("%.1f", r.Seconds)))
	}
	if !p.a.json() {
		t.row(rightText("all"), num(sum.Acked), num(sum.Read), num(sum.Failed), num(sum.Lost), num(sum.Duplicated), num(sum.Reordered),
			rightText("-"), num(sum.Reapplied), rightText("-"), rightText(fmt.Sprintf("%.1f", sum.Seconds)))
		if err := p.a.printTable(t); err != nil {
			return err
		}
	}
	switch {
	case !sum.clean() || sum.Failed > 0:
		return errors.New("lines were lost, duplicated, reordered or failed")
	case sum.Reapplied == 0:
		return errors.New("no entry was applied again after a kill: the replay path was not run")
	}
	return nil
}

func (p *killProof) round(ctx context.Context, n int) (killRound, error) {
	r := killRound{Round: n}
	begin := time.Now()
	topic := fmt.Sprintf("kill-%d", n)
	c, err := dial(ctx, connection{Server: p.broker.url()}, p.a.timeout)
	if err != nil {
		return r, err
	}
	_, err = c.CreateTopic(ctx, client.TopicSpec{Name: topic})
	closeClient(c)
	if err != nil {
		return r, err
	}

	// 1. Publish, in a process of its own.
	var pubOut, pubErr bytes.Buffer
	pub := p.tool(ctx, "pub", topic, "--file", p.input, "-o", "json")
	pub.Stdout, pub.Stderr = &pubOut, &pubErr
	if err := pub.Start(); err != nil {
		return r, err
	}
	published := make(chan error, 1)
	go func() { published <- pub.Wait() }() // ends with ctx at the latest, which kills pub

	// 2. Kill at a random moment, start again.
	at := int64((0.05 + 0.9*p.rng.Float64()) * float64(p.lines))
	if r.KilledAt, err = p.awaitRecords(ctx, topic, at); err != nil {
		return r, err
	}
	p.broker.kill()
	restarted := time.Now()
	if err := p.broker.start(ctx); err != nil {
		return r, err
	}
	r.Recovery = time.Since(restarted).Seconds()
	if r.Reapplied, err = p.broker.metric(ctx, metricReapplied, ""); err != nil {
		return r, err
	}

	// 3. The publisher knows nothing of it but a pause.
	if err := <-published; err != nil {
		return r, fmt.Errorf("parley pub: %w: %s", err, lastOf(pubErr.String()))
	}
	var counts pubResult
	if err := json.Unmarshal(pubOut.Bytes(), &counts); err != nil {
		return r, fmt.Errorf("parley pub printed %q: %w", pubOut.String(), err)
	}
	r.Failed = counts.Failed

	// 4. Read back and compare.
	output := filepath.Join(p.dir, "read.txt")
	if err := p.readBack(ctx, topic, output); err != nil {
		return r, err
	}
	if r.verdict, err = compareFiles(p.input, output); err != nil {
		return r, err
	}
	if r.Acked != counts.Acked {
		return r, fmt.Errorf("parley pub says that %d of %d lines were acked", counts.Acked, r.Acked)
	}
	r.Seconds = time.Since(begin).Seconds()
	return r, p.forget(ctx, topic)
}

// awaitRecords waits until the topic's log holds n records.
func (p *killProof) awaitRecords(ctx context.Context, topic string, n int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, demoLimit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if now, err := p.broker.metric(ctx, metricNext, topic); err == nil && now >= n {
			return now, nil
		}
		select {
		case <-tick.C:
		case <-p.broker.ended:
			return 0, fmt.Errorf("parleyd ended by itself: %s", p.broker.lastLog())
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for %d records in %s: %w", n, topic, ctx.Err())
		}
	}
}

func (p *killProof) tool(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, p.self, append([]string{"--server", p.broker.url(), "--timeout", "30s"}, args...)...)
}

func (p *killProof) readBack(ctx context.Context, topic, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	sub := p.tool(ctx, "sub", topic, "--from", "earliest", "--until-end")
	sub.Stdout, sub.Stderr = f, &stderr
	if err := errors.Join(sub.Run(), f.Close()); err != nil {
		return fmt.Errorf("parley sub: %w: %s", err, lastOf(stderr.String()))
	}
	return nil
}

// forget deletes a round's topic, so that the rounds fit on a disk.
func (p *killProof) forget(ctx context.Context, topic string) error {
	c, err := dial(ctx, connection{Server: p.broker.url()}, p.a.timeout)
	if err != nil {
		return err
	}
	defer closeClient(c)
	_, err = c.DeleteTopic(ctx, topic)
	return err
}

func lastOf(output string) string {
	b := lockedBuffer{data: []byte(output)}
	return b.lastLine()
}

// proofWords make lines that look like text, of all lengths, some of them equal.
var proofWords = []string{"a", "broker", "that", "loses", "what", "it", "acked", "is", "no", "log", "größer", "—", "\tindented", "{\"json\":true}", "0", ""}

func writeLines(path string, lines int64, rng *rand.Rand) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write the lines to publish: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	for n := range lines {
		if rng.IntN(10) > 0 { // the others may repeat
			fmt.Fprintf(w, "%d ", n)
		}
		for range rng.IntN(24) {
			_, _ = w.WriteString(proofWords[rng.IntN(len(proofWords))]) // Flush tells
			_ = w.WriteByte(' ')
		}
		_ = w.WriteByte('\n')
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		return fmt.Errorf("write the lines to publish: %w", err)
	}
	return nil
}

func countLines(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return eachLine(f, func(int64, []byte) {})
}
