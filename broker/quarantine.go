package broker

// damaged says that this broker's replica of the partition has lost something, or has something that
// doesn't verify.
func (s *slot) damaged() bool {
	p := s.partition.Load()
	return p != nil && p.Status().Damage != ""
}
