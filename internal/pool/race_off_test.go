//go:build !race

package pool_test

// thin tells to leave out nothing: see the one for the race detector.
func thin(int) int { return 1 }
