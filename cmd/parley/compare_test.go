package main

import (
	"strings"
	"testing"
)

func TestCompareLines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, published, read string
		lost, dup, reordered  int64
	}{
		{"same", "a\nb\nc\n", "a\nb\nc\n", 0, 0, 0},
		{"nothing", "", "", 0, 0, 0},
		{"lost", "a\nb\nc\n", "a\nc\n", 1, 0, 0},
		{"lost at the end", "a\nb\nc\n", "a\n", 2, 0, 0},
		{"twice", "a\nb\n", "a\na\nb\n", 0, 1, 0},
		{"stranger", "a\n", "a\nx\n", 0, 1, 0},
		{"swapped", "a\nb\nc\n", "b\na\nc\n", 0, 0, 1},
		{"a repeated block", "a\nb\nc\nd\n", "a\nb\na\nb\nc\nd\n", 0, 2, 0},
		{"repeats that are right", "a\na\nb\na\n", "a\na\nb\na\n", 0, 0, 0},
		{"a repeat is lost", "a\na\nb\na\n", "a\na\nb\n", 1, 0, 0},
		{"the first of equal lines is lost", "a\nb\na\nc\n", "b\na\nc\n", 1, 0, 0},
		{"empty lines count", "\n\nx\n", "\nx\n", 1, 0, 0},
	} {
		v, err := compareLines(strings.NewReader(c.published), strings.NewReader(c.read))
		if err != nil || v.Lost != c.lost || v.Duplicated != c.dup || v.Reordered != c.reordered {
			t.Errorf("%s: %+v, %v; want lost %d, duplicated %d, reordered %d", c.name, v, err, c.lost, c.dup, c.reordered)
		}
	}
}

func TestLedger(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name            string
		acked, read     []int64
		lost, dup, late int64
	}{
		{"all there", []int64{0, 1, 2}, []int64{0, 1, 2}, 0, 0, 0},
		{"lost", []int64{0, 1, 2, 200}, []int64{0, 2}, 2, 0, 0},
		{"twice", []int64{0, 1}, []int64{0, 1, 1, 0}, 0, 2, 0},
		{"late", []int64{0, 1, 2}, []int64{0, 2, 1}, 0, 0, 1},
		{"read without an ack", []int64{0}, []int64{0, 1}, 0, 0, 0},
	} {
		l := newLedger()
		for _, n := range c.acked {
			l.acked.set(n)
		}
		for _, n := range c.read {
			l.observe(n)
		}
		if l.lost() != c.lost || l.duplicated != c.dup || l.reordered != c.late || l.read != int64(len(c.read)) {
			t.Errorf("%s: lost %d, duplicated %d, reordered %d; want %d, %d, %d", c.name, l.lost(), l.duplicated, l.reordered, c.lost, c.dup, c.late)
		}
	}
}
