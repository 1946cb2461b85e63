//go:build race

package prune_test

// The race detector makes everything several times as slow: it sees some of the crashes and rounds.
const (
	everyCrash  = 9
	modelRounds = 4
)
