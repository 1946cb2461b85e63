package cli

import (
	"errors"
	"fmt"

	"varve/internal/contract"
	"varve/internal/depot"
)

// work does something long here, with a bar on a terminal, and passes its error on.
func (t *terminal) work(label string, do func(progress depot.Progress) error) error {
	draw, done := t.bar(label)
	defer done()
	return do(func(sofar, total int64) { draw(float64(sofar) / float64(max(total, 1))) })
}

// warn says what a user should know, on stderr.
func (t *terminal) warn(warnings ...string) {
	for _, w := range warnings {
		fmt.Fprintln(t.stderr, "varve: warning: "+oneLine(w))
	}
}

// also is the error of what was done or, if that is nil, of showing it.
func also(err, shown error) error {
	if err != nil {
		return err
	}
	return shown
}

// isDamage tells an error that comes with a result that is worth showing.
func isDamage(err error) bool {
	var told *contract.Error
	return errors.As(err, &told) && told.Code == contract.CodeDamaged
}
