package group

// keyRecs holds the records of a key-ordered group that have a key and are not handled, found by offset. Offsets
// are dense: a page has the places of 32 neighbours, so most of them are found without a look-up and lie together.
type keyRecs struct {
	recs  []rec // pages, one after another
	pages []recPage
	byOff table // number of a page's offsets: the page
	spare int32 // first page that is free; none
	live  int

	// last page that was found, or not found
	lastAt   int64
	lastPage int32
}

// rec is a record that has a key and is not handled.
type rec struct {
	key        int32 // none: there is no record
	prev, next int32 // in one of its key's lists
	waits      bool
}

// recPage says which offsets a page is for.
type recPage struct {
	at   int64 // offset / pageRecs
	live int32
	next int32 // of the free ones
}

const (
	pageBits = 5
	pageRecs = 1 << pageBits
)

func newKeyRecs() keyRecs { return keyRecs{spare: none, lastAt: -1, lastPage: none} }

// find returns the place of a record, or none.
func (k *keyRecs) find(off int64) int32 {
	if at := off >> pageBits; at != k.lastAt {
		k.lastAt, k.lastPage = at, k.byOff.get(uint64(at))
	}
	if k.lastPage == none {
		return none
	}
	i := k.lastPage<<pageBits | int32(off&(pageRecs-1))
	if k.recs[i].key == none {
		return none
	}
	return i
}

// offset is where a record stands in the log.
func (k *keyRecs) offset(i int32) int64 {
	return k.pages[i>>pageBits].at<<pageBits | int64(i&(pageRecs-1))
}

// add makes a place for a record that has none.
func (k *keyRecs) add(off int64, key int32) int32 {
	at := off >> pageBits
	if at != k.lastAt || k.lastPage == none {
		e := k.byOff.place(uint64(at))
		if e.value == 0 {
			k.byOff.put(e, uint64(at), k.page(at))
		}
		k.lastAt, k.lastPage = at, e.value-1
	}
	i := k.lastPage<<pageBits | int32(off&(pageRecs-1))
	k.recs[i] = rec{key: key, prev: none, next: none}
	k.pages[k.lastPage].live++
	k.live++
	return i
}

func (k *keyRecs) page(at int64) int32 {
	p := k.spare
	if p != none {
		k.spare = k.pages[p].next
		k.pages[p] = recPage{at: at, next: none}
		return p
	}
	p = int32(len(k.pages))
	k.pages = append(k.pages, recPage{at: at, next: none})
	for range pageRecs {
		k.recs = append(k.recs, rec{key: none})
	}
	return p
}

// remove frees a record's place.
func (k *keyRecs) remove(i int32) {
	k.recs[i].key = none
	k.live--
	n := i >> pageBits
	p := &k.pages[n]
	if p.live--; p.live > 0 {
		return
	}
	k.byOff.remove(uint64(p.at))
	if k.lastAt == p.at {
		k.lastPage = none
	}
	p.next, k.spare = k.spare, n
}

// enqueue puts a record among those of its key that wait, by offset. It is mostly the last, or one of the first.
func (k *keyRecs) enqueue(i int32, key *key) {
	r := &k.recs[i]
	r.waits = true
	if key.tail == none {
		r.prev, r.next, key.head, key.tail = none, none, i, i
		return
	}
	off := k.offset(i)
	if k.offset(key.tail) < off {
		r.prev, r.next = key.tail, none
		k.recs[key.tail].next = i
		key.tail = i
		return
	}
	n := key.head
	for k.offset(n) < off {
		n = k.recs[n].next
	}
	r.prev, r.next = k.recs[n].prev, n
	k.recs[n].prev = i
	if r.prev != none {
		k.recs[r.prev].next = i
	} else {
		key.head = i
	}
}

// hold puts a record among those that the key's owner has.
func (k *keyRecs) hold(i int32, key *key) {
	r := &k.recs[i]
	r.waits, r.prev, r.next = false, none, key.held
	if key.held != none {
		k.recs[key.held].prev = i
	}
	key.held = i
}

func (k *keyRecs) unlink(i int32, key *key) {
	r := &k.recs[i]
	if r.prev != none {
		k.recs[r.prev].next = r.next
	} else if r.waits {
		key.head = r.next
	} else {
		key.held = r.next
	}
	if r.next != none {
		k.recs[r.next].prev = r.prev
	} else if r.waits {
		key.tail = r.prev
	}
	r.prev, r.next = none, none
}
