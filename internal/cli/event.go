package cli

type eventCommands struct {
	List eventList `cmd:"" help:"List the latest events, oldest first."`
}

type eventList struct{}

// Run lists events.
func (eventList) Run(t *terminal) error {
	events, err := t.client.Events(t.ctx)
	if err != nil {
		return err
	}
	return t.print(events, func(w *table) {
		w.row("TIME", "KIND", "OBJECT", "WHAT")
		for _, e := range events {
			w.row(localTime(&e.Time), e.Kind, e.Object, e.Message)
		}
	})
}
