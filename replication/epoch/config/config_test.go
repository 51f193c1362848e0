package config

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/parleymq/parley/replication/format"
)

func sample() *Config {
	return &Config{
		ClusterID: "c1", Epoch: 0, Council: []uint64{1},
		NextBroker: 3, NextTopic: 3, NextShard: 4, NextReplica: 6,
		Brokers: []Broker{
			{ID: 1, Name: "b1", Incarnation: "i1", Addresses: Addresses{"127.0.0.1:4222", "127.0.0.1:6222", "127.0.0.1:7222"}, Weight: 100},
			{ID: 2, Name: "b2", Incarnation: "i2", Rack: "r2", Weight: 50, State: Draining},
		},
		Topics: []Topic{
			{ID: 1, Name: "orders", Subjects: DefaultSubjects("orders"), Config: map[string]string{"retention": "7d", "key": "token:2"},
				Partitions: []Partition{{Shard: 1, Replicas: []Replica{{1, 1}, {2, 2}}}, {Shard: 2, Replicas: []Replica{{3, 2}, {4, 1}}}}, CreatedAt: 5},
			{ID: 2, Name: "old", Subjects: []string{"old"}, Partitions: []Partition{{Shard: 3, Replicas: []Replica{{5, 1}}}}, CreatedAt: 1, DeletedAt: 9},
		},
		By: "b1", At: 1700000000000, Change: "made up",
	}
}

func next(c *Config) *Config {
	n := c.Clone()
	n.Epoch, n.Previous = c.Epoch+1, c.Hash()
	return n
}

func TestEncoding(t *testing.T) {
	t.Parallel()
	c := sample()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, got) {
		t.Errorf("got %+v\nwant %+v", got, c)
	}
	if got.Hash() != c.Hash() {
		t.Error("the hash changed")
	}
	for range 20 { // maps have no order
		again, err := c.Clone().Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("another encoding, %v", err)
		}
	}
	for i := range b {
		if _, err := Decode(b[:i]); !errors.Is(err, ErrDecode) {
			t.Fatalf("the first %d bytes: %v", i, err)
		}
	}
	if _, err := Decode(append(b, 0)); !errors.Is(err, ErrDecode) {
		t.Errorf("a byte too many: %v", err)
	}
	newer := bytes.Clone(b)
	newer[len(magic)] = versionChecked + 1
	if _, err := Decode(newer); !errors.Is(err, format.ErrNewer) || errors.Is(err, ErrDecode) {
		t.Errorf("a newer version: %v", err)
	}
	// A level that this program doesn't know, in the form that it does: it would do half of what the epoch asks.
	above := sample()
	above.FeatureLevel = Level + 1
	if b, err = above.Encode(); err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); !errors.Is(err, format.ErrNewer) || !strings.Contains(err.Error(), fmt.Sprintf("feature level %d, this program knows up to %d", Level+1, Level)) {
		t.Errorf("a newer feature level: %v", err)
	}
	if b[len(magic)] <= versionMoves {
		t.Errorf("version %d at feature level %d: programs that don't look at the level would take it", b[len(magic)], Level+1)
	}
}

func TestCloneIsDeep(t *testing.T) {
	t.Parallel()
	c := sample()
	h := c.Hash()
	n := c.Clone()
	n.Topics[0].Config["retention"] = "1d"
	n.Topics[0].Partitions[0].Replicas[0].Broker = 2
	n.Topics[0].Subjects[0] = "x"
	n.Brokers[0].Name = "x"
	n.Council[0] = 2
	if c.Hash() != h {
		t.Error("a change of the clone changed the original")
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	c := sample()
	c.Topics = nil
	for n := uint64(1); n <= 20; n++ {
		topic := Topic{ID: n, Name: fmt.Sprintf("t%d", n), Subjects: DefaultSubjects(fmt.Sprintf("t%d", n))}
		for p := uint64(0); p < 1000; p++ {
			id := n*1000 + p
			topic.Partitions = append(topic.Partitions, Partition{Shard: id, Replicas: []Replica{{id, 1 + p%2}}})
		}
		c.Topics = append(c.Topics, topic)
	}
	c.NextTopic, c.NextShard, c.NextReplica = 22, 30_000, 30_000
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := c.Encode()
	if err != nil || len(b) > MaxEncoded {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	t.Logf("20,000 replicas take %d bytes", len(b))
	c.Topics[0].Partitions[0].Replicas = append(c.Topics[0].Partitions[0].Replicas, Replica{29_999, 2})
	if err := c.Validate(); !errors.Is(err, ErrInvalid) {
		t.Errorf("20,001 replicas: %v", err)
	}
	if _, err := c.Encode(); !errors.Is(err, ErrInvalid) {
		t.Errorf("20,001 replicas encoded: %v", err)
	}
	// Texts that don't compress fill a value before the replicas do.
	c = sample()
	r := rand.New(rand.NewPCG(1, 2))
	for n := uint64(3); n < 20_000; n++ {
		name := make([]byte, 100)
		for i := range name {
			name[i] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"[r.IntN(64)]
		}
		name[0] = 'n'
		c.Topics = append(c.Topics, Topic{ID: n, Name: string(name), Subjects: []string{string(name)}, Partitions: []Partition{{Shard: n + 1}}})
	}
	if _, err := c.Encode(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a value over the limit: %v", err)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*Config){
		"no broker":               func(c *Config) { c.Brokers, c.Topics = nil, nil },
		"broker id beyond":        func(c *Config) { c.NextBroker = 2 },
		"broker order":            func(c *Config) { c.Brokers[0], c.Brokers[1] = c.Brokers[1], c.Brokers[0] },
		"broker name twice":       func(c *Config) { c.Brokers[1].Name = "b1" },
		"weight 0":                func(c *Config) { c.Brokers[0].Weight = 0 },
		"council empty":           func(c *Config) { c.Council = nil },
		"council of strangers":    func(c *Config) { c.Council = []uint64{9} },
		"council order":           func(c *Config) { c.Council = []uint64{2, 1} },
		"topic id beyond":         func(c *Config) { c.NextTopic = 2 },
		"topic name":              func(c *Config) { c.Topics[0].Name = "a..b" },
		"topic twice":             func(c *Config) { c.Topics[1].Name, c.Topics[1].DeletedAt = "orders", 0 },
		"no partition":            func(c *Config) { c.Topics[0].Partitions = nil },
		"no replica":              func(c *Config) { c.Topics[0].Partitions[0].Replicas = nil },
		"shard twice":             func(c *Config) { c.Topics[0].Partitions[1].Shard = 1 },
		"shard beyond":            func(c *Config) { c.NextShard = 3 },
		"replica twice":           func(c *Config) { c.Topics[1].Partitions[0].Replicas[0].ID = 1 },
		"replica beyond":          func(c *Config) { c.NextReplica = 5 },
		"replica on a stranger":   func(c *Config) { c.Topics[0].Partitions[0].Replicas[0].Broker = 9 },
		"two replicas, one place": func(c *Config) { c.Topics[0].Partitions[0].Replicas[1].Broker = 1 },
		"no subject":              func(c *Config) { c.Topics[0].Subjects = nil },
		"reserved subject":        func(c *Config) { c.Topics[0].Subjects = []string{"$SYS.x"} },
		"config key":              func(c *Config) { c.Topics[0].Config["colour"] = "red" },
		"config value":            func(c *Config) { c.Topics[0].Config["retention"] = "soon" },
		"purge of the living":     func(c *Config) { c.Topics[0].Purge = true },
		"previous of the first":   func(c *Config) { c.Previous[0] = 1 },
		"long text":               func(c *Config) { c.Change = strings.Repeat("x", MaxText+1) },
		"overlap": func(c *Config) {
			c.Topics[1].DeletedAt = 0
			c.Topics[1].Subjects = []string{"orders.*.x"}
		},
	} {
		c := sample()
		spoil(c)
		if err := c.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := sample()
	c.Topics[1].Subjects = []string{"orders.*.x"}
	if err := c.Validate(); err != nil {
		t.Errorf("a deleted topic's subjects are in the way: %v", err)
	}
}

func TestFollows(t *testing.T) {
	t.Parallel()
	prev := sample()
	if err := next(prev).Follows(prev); err != nil {
		t.Fatal(err)
	}
	purging := sample()
	purging.Topics[1].Purge = true
	forgets := next(purging)
	forgets.Topics = forgets.Topics[:1]
	if err := forgets.Follows(purging); err != nil {
		t.Errorf("a purged topic can't be forgotten: %v", err)
	}
	for name, spoil := range map[string]func(*Config){
		"skipped epoch":   func(c *Config) { c.Epoch++ },
		"other chain":     func(c *Config) { c.Previous[3]++ },
		"other cluster":   func(c *Config) { c.ClusterID = "c2" },
		"counter falls":   func(c *Config) { c.NextReplica-- },
		"renamed":         func(c *Config) { c.Topics[0].Name = "orders2" },
		"shrunk":          func(c *Config) { c.Topics[0].Partitions = c.Topics[0].Partitions[:1] },
		"other shard":     func(c *Config) { c.Topics[0].Partitions[0].Shard = 3 },
		"vanished":        func(c *Config) { c.Topics = c.Topics[:1] },
		"reused topic id": func(c *Config) { c.Topics[1].ID = 1; c.Topics = c.Topics[1:] },
		"reused broker id": func(c *Config) {
			c.Brokers = append(c.Brokers, Broker{ID: 2})
			c.Brokers = append(c.Brokers[:1], c.Brokers[2:]...)
			c.Topics[0].ID = 0
		},
	} {
		c := next(prev)
		spoil(c)
		if err := c.Follows(prev); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	back := next(purging)
	back.Topics[1].Purge, back.Topics[1].DeletedAt = false, 0
	if err := back.Follows(purging); !errors.Is(err, ErrInvalid) {
		t.Errorf("a topic came back from its purge: %v", err)
	}
}

func TestNamesAndSubjects(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "-", "orders", "a.b.c", "A-1_x.y_", "x._y", strings.Repeat("a", 200)} {
		if err := CheckTopicName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "a..b", ".a", "a.", "a b", "a.*", "a>", "_a", "$a", "é", "a\x00", strings.Repeat("a", 201)} {
		if CheckTopicName(name) == nil {
			t.Errorf("topic name %q is allowed", name)
		}
	}
	for _, s := range []string{"a", "a.>", "a.*.b", "a.$x"} {
		if err := CheckSubject(s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"", ">", "*.a", "a.>.b", "a..b", "a.b*", "$JS.x", "_INBOX.x", "a b", "a.\tb", strings.Repeat("a", 513)} {
		if CheckSubject(s) == nil {
			t.Errorf("subject %q is allowed", s)
		}
	}
}

// TestSubjectsOverlap compares with every subject that a small alphabet makes.
func TestSubjectsOverlap(t *testing.T) {
	t.Parallel()
	var subjects, filters []string
	for _, a := range []string{"a", "b"} {
		subjects, filters = append(subjects, a), append(filters, a)
		for _, b := range []string{"a", "b", "*", ">"} {
			filters = append(filters, a+"."+b)
			if b < "a" {
				continue
			}
			subjects = append(subjects, a+"."+b)
			for _, c := range []string{"a", "b", "*", ">"} {
				filters = append(filters, a+"."+b+"."+c, a+".*."+c)
				if c >= "a" {
					subjects = append(subjects, a+"."+b+"."+c)
				}
			}
		}
	}
	for _, f := range filters {
		for _, g := range filters {
			want := false
			for _, s := range subjects {
				want = want || matches(f, s) && matches(g, s)
			}
			if got := SubjectsOverlap(f, g); got != want {
				t.Errorf("%s and %s: overlap %v, want %v", f, g, got, want)
			}
		}
	}
}

func matches(filter, subject string) bool {
	f, s := strings.Split(filter, "."), strings.Split(subject, ".")
	for i := range f {
		if f[i] == ">" {
			return len(s) > i
		}
		if i >= len(s) || f[i] != "*" && f[i] != s[i] {
			return false
		}
	}
	return len(f) == len(s)
}

func TestUnits(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]time.Duration{"0": 0, "7d": 168 * time.Hour, "12h": 12 * time.Hour, "1d12h": 36 * time.Hour, "90s": 90 * time.Second, "2w": 336 * time.Hour, "5ms": 5 * time.Millisecond, "1m": time.Minute} {
		if got, err := ParseDuration(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "d", "1", "-1d", "1y", "1.5h", "9999999999999d", "1d2"} {
		if got, err := ParseDuration(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
	for s, want := range map[string]int64{"0": 0, "10GiB": 10 << 30, "1MiB": 1 << 20, "5": 5, "2kb": 2000, "1 TiB": 1 << 40} {
		if got, err := ParseBytes(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "x", "-1", "1.5GiB", "1PiB", "99999999999GiB"} {
		if got, err := ParseBytes(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
	for _, m := range []map[string]string{{"key": "token:0"}, {"key": "x"}, {"max_record": "2MiB"}, {"max_record": "0"}, {"max_records": "-1"}, {"work_queue": "yes"}, {"nope": "1"}} {
		if _, err := ParseTopicConfig(m); err == nil {
			t.Errorf("%v is allowed", m)
		}
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	a := sample()
	b := next(a)
	b.Brokers[1].State = Active
	b.Topics[0].DeletedAt = 7
	b.Topics[0].Config["retention"] = "1d"
	b.Topics[1].DeletedAt = 0
	b.Topics[0].Partitions[0].Replicas = []Replica{{1, 1}}
	b.Topics = append(b.Topics, Topic{ID: 3, Name: "new", Subjects: []string{"new"}, Partitions: []Partition{{Shard: 4}}})
	want := []string{
		"~ broker b2: state draining -> active",
		"- topic orders deleted (restorable)",
		"~ topic orders: retention 7d -> 1d",
		"~ partition orders/0: replicas b1(1),b2(2) -> b1(1)",
		"+ topic old restored",
		"+ topic new (id 3, 1 partitions, subjects new)",
	}
	if got := Diff(a, b); !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	if got := Diff(a, a); len(got) != 0 {
		t.Errorf("no change: %v", got)
	}
}

func FuzzDecode(f *testing.F) {
	b, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("PEV\x01\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Decode(b)
		if err != nil {
			return
		}
		_ = c.Validate()
		again, err := c.Encode()
		if err != nil {
			return
		}
		d, err := Decode(again)
		if err != nil || d.Hash() != c.Hash() {
			t.Fatalf("decoded %+v, again %+v, %v", c, d, err)
		}
	})
}

// FuzzBody decodes bodies directly: the compressor keeps a fuzzer from getting
// that far.
func FuzzBody(f *testing.F) {
	f.Add(sample().body())
	f.Fuzz(func(t *testing.T, body []byte) {
		r := reader{b: body}
		c := r.config()
		if r.err != nil || len(r.b) != 0 {
			return
		}
		if again := c.body(); !bytes.Equal(again, body) {
			t.Fatalf("a second form of one value: %x and %x", body, again)
		}
	})
}

func FuzzSubjects(f *testing.F) {
	f.Add("a.*.b", "a.>")
	f.Fuzz(func(t *testing.T, a, b string) {
		_ = CheckTopicName(a)
		if CheckSubject(a) == nil && CheckSubject(b) == nil && SubjectsOverlap(a, b) != SubjectsOverlap(b, a) {
			t.Fatalf("%q and %q overlap one way only", a, b)
		}
	})
}
