//go:build !race

package prune_test

const (
	everyCrash  = 1
	modelRounds = 20
)
