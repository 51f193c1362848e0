package main

import (
	"encoding/json"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// isTerminal says whether w is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// colours says whether w gets colour: only a terminal, and only a willing one.
func (a *app) colours(w io.Writer) bool {
	if v, ok := a.lookup("NO_COLOR"); ok && v != "" {
		return false
	}
	if v, _ := a.lookup("TERM"); v == "dumb" {
		return false
	}
	return isTerminal(w)
}

// Styles, as terminals take them.
const (
	plain  = ""
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	reset  = "\x1b[0m"
)

// A cell of a table. Numbers go to the right.
type cell struct {
	text  string
	right bool
	style string
}

func str(s string) cell {
	if s == "" {
		return cell{text: "-", style: dim}
	}
	return cell{text: s}
}

func num[T int | int32 | int64 | uint32 | uint64](n T) cell {
	return cell{text: grouped(strconv.FormatInt(int64(n), 10)), right: true}
}

func styled(s, style string) cell { return cell{text: s, style: style} }

func rightText(s string) cell { return cell{text: s, right: true} }

// grouped puts thin order into long numbers: 1234567 -> 1,234,567.
func grouped(digits string) string {
	sign := ""
	if strings.HasPrefix(digits, "-") {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}

// table collects rows and prints them in columns, two spaces apart.
type table struct {
	head []string
	rows [][]cell
}

func newTable(head ...string) *table { return &table{head: head} }

func (t *table) row(cells ...cell) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer, colour bool) error {
	rows := t.rows
	if t.head != nil {
		head := make([]cell, len(t.head))
		for i, h := range t.head {
			head[i] = cell{text: h, style: bold}
			// A heading stands where its column does.
			head[i].right = len(t.rows) > 0 && i < len(t.rows[0]) && t.rows[0][i].right
		}
		rows = append([][]cell{head}, rows...)
	}
	var widths []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		for i, c := range r {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text))
			if i > 0 {
				b.WriteString("  ")
			}
			if c.right {
				b.WriteString(pad)
			}
			if colour && c.style != plain {
				b.WriteString(c.style + c.text + reset)
			} else {
				b.WriteString(c.text)
			}
			if !c.right && i < len(r)-1 {
				b.WriteString(pad)
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printJSON writes v as one line.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (a *app) printTable(t *table) error { return t.print(a.stdout, a.colours(a.stdout)) }
