package cli

import "varve/internal/demo"

type demoCommand struct{}

// Run shows the whole story.
func (demoCommand) Run(t *terminal) error { return demo.Run(t.ctx, t.stdout) }
