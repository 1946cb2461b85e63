package daemon

import (
	"varve/internal/contract"
	"varve/internal/pool"
)

func stalls(s pool.Stalls) contract.Stalls {
	return contract.Stalls{
		Freeze: latency(s.Freeze), Append: latency(s.Append), Settle: latency(s.Settle), Delayed: latency(s.Delayed),
	}
}

func latency(l pool.Latency) contract.Latency {
	return contract.Latency{
		Count: l.Count, P50: contract.Milliseconds(l.P50), P99: contract.Milliseconds(l.P99),
		P999: contract.Milliseconds(l.P999), Max: contract.Milliseconds(l.Max),
	}
}
