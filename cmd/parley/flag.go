package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flagError says what a flag takes, where its library only says which function could not read the value.
func flagError(_ *cobra.Command, err error) error {
	invalid := (*pflag.InvalidValueError)(nil)
	if !errors.As(err, &invalid) {
		return err
	}
	flag := invalid.GetFlag()
	if errors.Is(err, errGivenTwice) {
		return fmt.Errorf("--%s %q: %w", flag.Name, invalid.GetValue(), errGivenTwice)
	}
	want := "another value"
	switch flag.Value.Type() {
	case "int", "int32", "int64":
		want = "a whole number"
	case "uint32", "uint64":
		want = "a whole number from 0 on"
	case "float64":
		want = "a number"
	case "duration":
		want = "a span such as 500ms, 5s or 2m"
	case "bool":
		want = "true or false"
	}
	return fmt.Errorf("--%s %q: want %s", flag.Name, invalid.GetValue(), want)
}

var errGivenTwice = errors.New("the flag was given before, with another value: give it once")

// single is a flag of one value that is given once at the most: of two values the first would be dropped without a word, be it a
// partition to read or a broker to move to. Global flags are left out, as they are often set in an alias and then again.
type single struct {
	pflag.Value
	given string
	set   bool
}

func (s *single) Set(v string) error {
	if s.set && v != s.given {
		return errGivenTwice
	}
	s.given, s.set = v, true
	return s.Value.Set(v)
}

// giveOnce has a command, and those below, refuse flags that contradict each other.
func giveOnce(cmd *cobra.Command) {
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		switch f.Value.Type() {
		case "bool", "stringArray", "stringSlice":
			return
		case "duration":
			if f.DefValue == "0s" {
				f.DefValue = "0" // which help takes for none, whatever the type
			}
		}
		f.Value = &single{Value: f.Value}
	})
	for _, sub := range cmd.Commands() {
		if !sub.Hidden { // those are for programs, which add to what is there
			giveOnce(sub)
		}
	}
}
