// Package repository keeps backups in a store of write-once objects. It is the
// sum of its parts: objects in envelopes (package envelope), sealed (seal) with
// keys that a ring holds (keys), chunks and map nodes in packs (pack), an index of
// where they are (index), and a map for each backup (maptree).
//
// Vocabulary: a session writes one record, which is one backup or those of a
// group at one instant. A candidate is what tells of a session before its
// record is there; a mark condemns packs; a fence says that a candidate was given
// up; a tombstone deletes a backup; a pin keeps one while it is read.
//
// Invariants: a backup exists when and only when its record does; then all that
// it needs is in the store, and no pruner, whenever it began, takes it away. No
// object is ever written again under its name. What is read is authenticated,
// and is what its id says.
//
// Left out: devices (package backup), what is no longer needed (prune), what is
// damaged (check).
package repository
