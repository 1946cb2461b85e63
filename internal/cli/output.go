package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"varve/internal/contract"
)

// table prints aligned columns.
type table struct{ w *tabwriter.Writer }

// row prints one line; cells are separated by columns.
func (t *table) row(cells ...any) {
	for i, c := range cells {
		if i > 0 {
			io.WriteString(t.w, "\t")
		}
		fmt.Fprint(t.w, c)
	}
	io.WriteString(t.w, "\n")
}

// field prints a name and a value, unless the value is empty.
func (t *table) field(name string, value any) {
	if text := fmt.Sprint(value); text != "" {
		t.row(name, text)
	}
}

// print prints v as JSON, or what draw draws.
func (t *terminal) print(v any, draw func(*table)) error {
	if t.Output == "json" {
		e := json.NewEncoder(t.stdout)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	w := tabwriter.NewWriter(t.stdout, 0, 0, 2, ' ', 0)
	draw(&table{w})
	return w.Flush()
}

// localTime is a time as people read it on their own clock.
func localTime(t *contract.Time) string {
	if t == nil {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

func joined(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, k+"="+labels[k])
	}
	return strings.Join(pairs, " ")
}

// listed joins the texts that are not empty.
func listed(texts ...string) string {
	return strings.Join(slices.DeleteFunc(texts, func(s string) bool { return s == "" }), ", ")
}

func yes(b bool, word string) string {
	if b {
		return word
	}
	return ""
}
