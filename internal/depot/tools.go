package depot

// What Check and CheckSealed are done with.
var (
	checker       Checker
	sealedChecker SealedChecker
)
