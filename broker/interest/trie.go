package interest

import "strings"

// node is one token of a trie of filters. The zero node is an empty trie.
// Reading and writing it are the owner's to guard.
type node[V any] struct {
	value V
	used  bool // value belongs to a filter that ends here

	literals map[string]*node[V]
	one      *node[V] // *
	rest     *node[V] // >, always a leaf

	parent *node[V]
	token  string
}

// put returns the node at which filter ends, made if need be. The caller sets
// used and the value. filter must be valid.
func (n *node[V]) put(filter string) *node[V] {
	for more := true; more; {
		var token string
		token, filter, more = strings.Cut(filter, ".")
		n = n.child(token)
	}
	return n
}

func (n *node[V]) child(token string) *node[V] {
	next := n.next(token)
	if next != nil {
		return next
	}
	next = &node[V]{parent: n, token: token}
	switch token {
	case "*":
		n.one = next
	case ">":
		n.rest = next
	default:
		if n.literals == nil {
			n.literals = make(map[string]*node[V])
		}
		n.literals[token] = next
	}
	return next
}

func (n *node[V]) next(token string) *node[V] {
	switch token {
	case "*":
		return n.one
	case ">":
		return n.rest
	}
	return n.literals[token]
}

// get returns the node at which filter ends, or nil.
func (n *node[V]) get(filter string) *node[V] {
	for more := true; more && n != nil; {
		var token string
		token, filter, more = strings.Cut(filter, ".")
		n = n.next(token)
	}
	return n
}

// prune takes an unused node out of the trie, and every parent that it leaves
// without a purpose.
func (n *node[V]) prune() {
	for n.parent != nil && !n.used && len(n.literals) == 0 && n.one == nil && n.rest == nil {
		p := n.parent
		switch n {
		case p.one:
			p.one = nil
		case p.rest:
			p.rest = nil
		default:
			delete(p.literals, n.token)
		}
		n.parent = nil
		n = p
	}
}

// match appends the used nodes whose filter takes in the subject.
func (n *node[V]) match(subject []byte, to []*node[V]) []*node[V] {
	for {
		token, rest, more := cut(subject)
		if len(token) == 0 {
			return to // an empty token matches nothing, not even >
		}
		if n.rest != nil && nonEmptyTokens(rest, more) {
			to = append(to, n.rest)
		}
		if n.one != nil {
			if more {
				to = n.one.match(rest, to)
			} else if n.one.used {
				to = append(to, n.one)
			}
		}
		n = n.literals[string(token)]
		if n == nil {
			return to
		}
		if !more {
			if n.used {
				to = append(to, n)
			}
			return to
		}
		subject = rest
	}
}

// first returns one used node whose filter takes in the subject, or nil.
func (n *node[V]) first(subject []byte) *node[V] {
	for {
		token, rest, more := cut(subject)
		if len(token) == 0 {
			return nil
		}
		if n.rest != nil && nonEmptyTokens(rest, more) {
			return n.rest
		}
		if n.one != nil {
			if more {
				if f := n.one.first(rest); f != nil {
					return f
				}
			} else if n.one.used {
				return n.one
			}
		}
		n = n.literals[string(token)]
		if n == nil {
			return nil
		}
		if !more {
			if n.used {
				return n
			}
			return nil
		}
		subject = rest
	}
}

// nonEmptyTokens: what `>` takes in beyond its first token.
func nonEmptyTokens(rest []byte, more bool) bool {
	if !more {
		return true
	}
	if len(rest) == 0 || rest[len(rest)-1] == '.' || rest[0] == '.' {
		return false
	}
	for i := 1; i < len(rest); i++ {
		if rest[i] == '.' && rest[i-1] == '.' {
			return false
		}
	}
	return true
}

// overlap returns one used node whose filter shares a subject with the filter
// given, or nil.
func (n *node[V]) overlap(filter string) *node[V] {
	token, rest, more := strings.Cut(filter, ".")
	if n.rest != nil {
		return n.rest
	}
	if token == ">" {
		return n.anyBelow()
	}
	within := func(c *node[V]) *node[V] {
		switch {
		case c == nil:
			return nil
		case more:
			return c.overlap(rest)
		case c.used:
			return c
		}
		return nil
	}
	if f := within(n.one); f != nil {
		return f
	}
	if token != "*" {
		return within(n.literals[token])
	}
	for _, c := range n.literals {
		if f := within(c); f != nil {
			return f
		}
	}
	return nil
}

// anyBelow returns a used node under n: there is one, or n would be pruned.
func (n *node[V]) anyBelow() *node[V] {
	for _, c := range []*node[V]{n.rest, n.one} {
		if c != nil {
			if c.used {
				return c
			}
			return c.anyBelow()
		}
	}
	for _, c := range n.literals {
		if c.used {
			return c
		}
		return c.anyBelow()
	}
	return nil
}

// walk calls visit for every used node.
func (n *node[V]) walk(visit func(*node[V])) {
	if n.used {
		visit(n)
	}
	for _, c := range n.literals {
		c.walk(visit)
	}
	if n.one != nil {
		n.one.walk(visit)
	}
	if n.rest != nil {
		n.rest.walk(visit)
	}
}
