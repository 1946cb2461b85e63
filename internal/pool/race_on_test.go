//go:build race

package pool_test

// thin leaves out all but one in n of the crashes that are tried one after the other: under the race detector they take several times as long, and show nothing that the
// others do not. Without it all of them are tried.
func thin(n int) int { return n }
