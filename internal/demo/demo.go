package demo
import ("context";"io")
func Run(ctx context.Context, w io.Writer) error { return nil }
