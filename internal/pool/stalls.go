package pool

import "varve/internal/pool/latency"

// stalls tells for how long checkpoints held what writers need. A writer waits at most
// that long for one of these, and mostly less: they are counted whether anybody waited or not.
type stalls struct {
	freeze   latency.Histogram // the log alone, while the maps are frozen
	appends  latency.Histogram // the end of the log, while one piece of a checkpoint is written there
	settle   latency.Histogram // a volume's map, or the log alone, while nodes in memory are let go
	throttle latency.Histogram // what writers did wait because the maps took too much memory
}

// Latency are percentiles of durations.
type Latency = latency.Summary

// Stalls tells how long checkpoints have kept writers from what they need since the pool was opened.
type Stalls struct {
	Freeze  Latency // all writers, once a checkpoint
	Append  Latency // all writers, once for each 256 KiB that a checkpoint writes
	Settle  Latency // the writers of one volume, several times a checkpoint
	Delayed Latency // what writers waited because the maps took too much memory
}

func (s *stalls) summary() Stalls {
	return Stalls{
		Freeze: s.freeze.Summary(), Append: s.appends.Summary(), Settle: s.settle.Summary(), Delayed: s.throttle.Summary(),
	}
}
