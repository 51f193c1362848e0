package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

// A member of a proof's group is a process, so that it can be killed and stopped like any other. It writes a line for each
// record that it has handled, and the process that started it reads them.

const (
	memberLine  = "%d %d %d %d %d\n" // partition, offset, token, due, handled
	memberReady = "ready\n"
	// memberStop is how long a member may take to leave.
	memberStop = 20 * time.Second
)

// groupMemberCommand is the child's side.
func (a *app) groupMemberCommand() *cobra.Command {
	var server, topic, group, name string
	var session time.Duration
	cmd := &cobra.Command{
		Use: "group-member", Hidden: true, Short: "Is a member of a group until stdin ends", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dial(cmd.Context(), connection{Server: server}, a.timeout)
			if err != nil {
				return err
			}
			defer closeClient(c)
			var mu sync.Mutex
			s, err := c.Subscribe(cmd.Context(), topic, group, func(_ context.Context, m *client.Message) error {
				now := time.Now().UnixNano()
				mu.Lock()
				defer mu.Unlock()
				_, err := fmt.Fprintf(a.stdout, memberLine, m.Partition, m.Offset, m.Token, int64(binary.LittleEndian.Uint64(m.Value)), now)
				return err
			}, client.Session(session), client.MemberName(name))
			if err != nil {
				return err
			}
			mu.Lock()
			_, err = io.WriteString(a.stdout, memberReady)
			mu.Unlock()
			over := make(chan struct{})
			go func() { // ends with the process
				_, _ = io.Copy(io.Discard, a.stdin)
				close(over)
			}()
			select {
			case <-over:
			case <-cmd.Context().Done():
			case <-s.Done():
			}
			ctx, cancel := context.WithTimeout(context.Background(), memberStop)
			defer cancel()
			return errors.Join(err, s.Close(ctx))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&server, "of", "", "")
	flags.StringVar(&topic, "topic", "", "")
	flags.StringVar(&group, "group", "", "")
	flags.StringVar(&name, "name", "", "")
	flags.DurationVar(&session, "session", 0, "")
	return cmd
}

// memberProcess is such a child.
type memberProcess struct {
	name  string
	cmd   *exec.Cmd
	stdin io.Closer
	log   lockedBuffer
	ready chan struct{}
	ended chan struct{} // all that it wrote was read, and it was waited for
}

func startMember(name, server string, session time.Duration, h *handover) (*memberProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	m := &memberProcess{name: name, ready: make(chan struct{}), ended: make(chan struct{})}
	m.cmd = exec.Command(self, "proof", "group-member", "--of", server, "--topic", rebalanceTopic, "--group", rebalanceGroup,
		"--name", name, "--session", session.String())
	m.cmd.Stderr = &m.log
	tie(m.cmd)
	stdin, err := m.cmd.StdinPipe()
	var stdout io.ReadCloser
	if err == nil {
		stdout, err = m.cmd.StdoutPipe()
	}
	if err == nil {
		err = m.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start member %s: %w", name, err)
	}
	m.stdin = stdin
	go func() { // ends with the child
		defer close(m.ended)
		m.read(stdout, h)
		_ = m.cmd.Wait() // how it ended shows in what it handled
	}()
	return m, nil
}

func (m *memberProcess) read(from io.Reader, h *handover) {
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return // a line that was cut off was not handled
		}
		if line == memberReady {
			close(m.ready)
			continue
		}
		e := groupEvent{member: m.name}
		if _, err := fmt.Sscanf(line, memberLine, &e.part, &e.offset, &e.token, &e.due, &e.now); err == nil && int(e.part) < len(h.parts) {
			h.add(e)
		}
	}
}

// await waits until the member has joined.
func (m *memberProcess) await(ctx context.Context) error {
	select {
	case <-m.ready:
		return nil
	case <-m.ended:
		return fmt.Errorf("member %s has ended: %s", m.name, m.log.lastLine())
	case <-ctx.Done():
		return fmt.Errorf("wait for member %s: %w", m.name, ctx.Err())
	}
}

func (m *memberProcess) signal(s syscall.Signal) {
	_ = m.cmd.Process.Signal(s) // it has ended: what it handled shows that
}

// leave has the member leave the group, and waits until it has.
func (m *memberProcess) leave(ctx context.Context) error {
	_ = m.stdin.Close() // that is what it waits for
	select {
	case <-m.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for member %s to leave: %w", m.name, ctx.Err())
	}
}

func (m *memberProcess) kill() {
	m.signal(syscall.SIGKILL)
	<-m.ended
}
