package broker

import "github.com/parleymq/parley/partition/storage"

// Logs lists the partition logs that this broker stores, open or not.
func (b *Broker) Logs() ([]storage.LogID, error) { return b.engine.Logs() }
