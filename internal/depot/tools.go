package depot

// checker and pruner are what Check and Prune are done with.
var (
	checker Checker
	pruner  Pruner
)
