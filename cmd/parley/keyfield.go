package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// keyField takes a record's key out of a JSON object: the value at a path of
// field names, a string without its quotes, a number or truth value as written.
type keyField struct {
	path    string
	names   []string
	scratch []byte
}

func newKeyField(path string) (*keyField, error) {
	names := strings.Split(path, ".")
	for _, n := range names {
		if n == "" {
			return nil, usagef("--key-field %q: want field names joined by dots such as user.id", path)
		}
	}
	return &keyField{path: path, names: names}, nil
}

// find returns the key, valid until the next call.
func (k *keyField) find(line []byte) ([]byte, error) {
	if !json.Valid(line) {
		return nil, fmt.Errorf("not a JSON value")
	}
	value := bytes.TrimSpace(line)
	for _, name := range k.names {
		if len(value) == 0 || value[0] != '{' {
			return nil, fmt.Errorf("no field %q", k.path)
		}
		var ok bool
		if value, ok = k.member(value, name); !ok {
			return nil, fmt.Errorf("no field %q", k.path)
		}
	}
	switch value[0] {
	case '{', '[':
		return nil, fmt.Errorf("field %q is no string, number or truth value", k.path)
	case 'n':
		return nil, fmt.Errorf("field %q is null", k.path)
	case '"':
		return k.unquote(value), nil
	}
	return value, nil
}

// member finds the value of a field in the valid JSON object v. The last of
// several wins, as with encoding/json.
func (k *keyField) member(v []byte, name string) (found []byte, ok bool) {
	i := skipSpace(v, 1)
	for v[i] != '}' {
		end := skipString(v, i)
		key := k.unquote(v[i:end])
		match := string(key) == name
		i = skipSpace(v, skipSpace(v, end)+1) // over the colon
		end = skipValue(v, i)
		if match {
			found, ok = v[i:end], true
		}
		if i = skipSpace(v, end); v[i] == ',' {
			i = skipSpace(v, i+1)
		}
	}
	return found, ok
}

func (k *keyField) unquote(quoted []byte) []byte {
	inner := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return inner
	}
	var s string
	_ = json.Unmarshal(quoted, &s) // valid: find checked
	k.scratch = append(k.scratch[:0], s...)
	return k.scratch
}

// The skip functions walk over JSON that is known to be valid.

func skipSpace(v []byte, i int) int {
	for i < len(v) && (v[i] == ' ' || v[i] == '\t' || v[i] == '\n' || v[i] == '\r') {
		i++
	}
	return i
}

func skipString(v []byte, i int) int {
	for i++; v[i] != '"'; i++ {
		if v[i] == '\\' {
			i++
		}
	}
	return i + 1
}

func skipValue(v []byte, i int) int {
	switch v[i] {
	case '"':
		return skipString(v, i)
	case '{', '[':
		depth := 0
		for {
			switch v[i] {
			case '"':
				i = skipString(v, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
	}
	for i < len(v) && strings.IndexByte(",}] \t\r\n", v[i]) < 0 {
		i++
	}
	return i
}
