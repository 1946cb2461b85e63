package api

import (
	"net/http"
	"net/http/pprof"
)

// WithProfiles answers under /debug/pprof/ with the Go runtime's profiles of
// this process, and hands everything else to next. They tell what the process
// does and holds in memory, so nobody gets them unless asked for.
func WithProfiles(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", next)
	mux.HandleFunc("/debug/pprof/", pprof.Index) // and each profile by its name
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	return mux
}
