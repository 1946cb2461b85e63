package depot

// What Check and Prune are done with.
var (
	checker       Checker
	sealedChecker SealedChecker
	pruner        Pruner
)
