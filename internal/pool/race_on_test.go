//go:build race

package pool_test

// thin leaves out all but one in n of what is tried one after the other, by one goroutine: crashes, faults, random sequences. Under the race detector that takes several times as
// long, and shows nothing that the others do not. Without it all is tried.
func thin(n int) int { return n }
