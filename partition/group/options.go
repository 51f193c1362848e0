package group

import (
	"fmt"
	"slices"
)

// WithDefaults fills in what was left out; mode is taken where there is none.
func (o Options) WithDefaults(mode Mode) Options {
	if o.Mode == 0 {
		o.Mode = mode
	}
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.SessionMS, DefaultSessionMS)
	if o.Mode != Exclusive {
		def(&o.AckWaitMS, DefaultAckWaitMS)
		if o.MaxInFlight == 0 {
			o.MaxInFlight = DefaultInFlight
		}
		if o.MaxInFlightMember == 0 {
			o.MaxInFlightMember = o.MaxInFlight
		}
	}
	return o
}

// Check returns what is wrong with options, zero values aside.
func (o *Options) Check() error {
	switch {
	case o.Mode > KeyOrdered:
		return fmt.Errorf("group mode %d: allowed are exclusive, shared and key-ordered", o.Mode)
	case o.From.Kind > AtTime:
		return fmt.Errorf("start position of kind %d is not known", o.From.Kind)
	case o.From.Kind == AtOffset && o.From.Value < 0:
		return fmt.Errorf("start offset %d: 0 or more is allowed", o.From.Value)
	case o.SessionMS != 0 && (o.SessionMS < MinSessionMS || o.SessionMS > MaxSessionMS):
		return fmt.Errorf("session of %d ms: %d to %d are allowed", o.SessionMS, MinSessionMS, MaxSessionMS)
	case o.AckWaitMS < 0 || o.AckWaitMS > MaxDelayMS:
		return fmt.Errorf("ack wait of %d ms: 1 to %d are allowed, 0 for the default of %d", o.AckWaitMS, MaxDelayMS, DefaultAckWaitMS)
	case o.MaxDeliveries < 0:
		return fmt.Errorf("at most %d deliveries: 1 or more are allowed, 0 for no limit", o.MaxDeliveries)
	case len(o.BackoffMS) > MaxBackoffSteps:
		return fmt.Errorf("back-off of %d steps: at most %d are allowed", len(o.BackoffMS), MaxBackoffSteps)
	case o.MaxInFlight < 0 || o.MaxInFlight > MaxInFlightLimit:
		return fmt.Errorf("%d in flight: 1 to %d are allowed, 0 for the default of %d", o.MaxInFlight, MaxInFlightLimit, DefaultInFlight)
	case o.MaxInFlightMember < 0 || o.MaxInFlightMember > MaxInFlightLimit:
		return fmt.Errorf("%d in flight at one member: 1 to %d are allowed, 0 for as many as the group", o.MaxInFlightMember, MaxInFlightLimit)
	case len(o.DeadLetter) > MaxText:
		return fmt.Errorf("dead-letter topic of %d characters: at most %d are allowed", len(o.DeadLetter), MaxText)
	case o.Partitions < 0 || o.Partitions > MaxPartitions:
		return fmt.Errorf("%d partitions: at most %d are allowed", o.Partitions, MaxPartitions)
	}
	for _, ms := range o.BackoffMS {
		if ms < 0 || ms > MaxDelayMS {
			return fmt.Errorf("back-off step of %d ms: 0 to %d are allowed", ms, MaxDelayMS)
		}
	}
	return nil
}

// Conflict says in which option want differs from what the group has, "" in none. What want leaves
// out doesn't differ.
func (o *Options) Conflict(want *Options) string {
	differ := func(name string, have, asked int64) string {
		if asked == 0 || asked == have {
			return ""
		}
		return fmt.Sprintf("%s %d, not %d", name, have, asked)
	}
	if want.Mode != 0 && want.Mode != o.Mode {
		return fmt.Sprintf("mode %s, not %s", o.Mode, want.Mode)
	}
	if o.Mode != Exclusive && len(want.BackoffMS) > 0 && !slices.Equal(want.BackoffMS, o.BackoffMS) {
		return fmt.Sprintf("back-off %v ms, not %v", o.BackoffMS, want.BackoffMS)
	}
	if o.Mode != Exclusive && want.DeadLetter != "" && want.DeadLetter != o.DeadLetter {
		return fmt.Sprintf("dead-letter topic %q, not %q", o.DeadLetter, want.DeadLetter)
	}
	found := differ("session_ms", o.SessionMS, want.SessionMS)
	if o.Mode == Exclusive || found != "" {
		return found
	}
	for _, d := range []string{
		differ("ack_wait_ms", o.AckWaitMS, want.AckWaitMS),
		differ("max_deliveries", int64(o.MaxDeliveries), int64(want.MaxDeliveries)),
		differ("max_in_flight", int64(o.MaxInFlight), int64(want.MaxInFlight)),
		differ("max_in_flight_member", int64(o.MaxInFlightMember), int64(want.MaxInFlightMember)),
	} {
		if d != "" {
			return d
		}
	}
	return ""
}

// delay is how long a record waits after its n-th delivery failed.
func (o *Options) delay(n int32) int64 {
	if len(o.BackoffMS) == 0 {
		return 0
	}
	return o.BackoffMS[min(int(n), len(o.BackoffMS))-1]
}

// CheckName returns what is wrong with a group's name.
func CheckName(name string) error {
	if len(name) == 0 || len(name) > MaxName {
		return fmt.Errorf("group name of %d characters: 1 to %d are allowed", len(name), MaxName)
	}
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
		default:
			return fmt.Errorf("group name %q: letters, digits, _ and - are allowed", name)
		}
	}
	return nil
}

// CheckMember returns what is wrong with a member's id or description.
func CheckMember(m *Member) error {
	if m.ID == "" {
		return fmt.Errorf("a member needs an id")
	}
	for _, s := range []string{m.ID, m.Name, m.Host, m.Version} {
		if len(s) > MaxText {
			return fmt.Errorf("%d characters in a member's id, name, host or version: at most %d are allowed", len(s), MaxText)
		}
	}
	return nil
}
