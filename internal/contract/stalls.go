package contract

// Stalls tells how long each thing that checkpoints do kept writers waiting. All but delayed
// is counted whether anybody waited or not.
type Stalls struct {
	Freeze  Latency `json:"freeze" doc:"the whole pool, once a checkpoint"`
	Append  Latency `json:"append" doc:"the whole pool, once for each 256 KiB that a checkpoint writes"`
	Settle  Latency `json:"settle" doc:"one volume, several times a checkpoint"`
	Delayed Latency `json:"delayed" doc:"what writers waited because the maps took too much memory"`
}

// Latency are percentiles of durations, too large by an eighth at most; 0 where nothing was counted.
type Latency struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p99_9_ms"`
	Max   float64 `json:"max_ms"`
}
