package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// series are the bars of each load in the chart, from the top down.
var series = []struct{ server, label, class string }{
	{varvePlain, "varve", "own"},
	{varve100, "varve, 100 snapshots", "deep"},
	{qemuRaw, "qemu-nbd, raw file", "raw"},
	{nbdkitFile, "nbdkit, raw file", "kit"},
	{chain100, "qemu-nbd, qcow2, 100 snapshots", "chain"},
}

// Measures of the chart, in pixels.
const (
	chartWidth = 900
	plotLeft   = 250
	plotRight  = 770 // figures stand beyond the bars' ends
	plotTop    = 104
	barHeight  = 10
	barPitch   = 12
	groupPitch = 78 // one load below another
	axisHeight = 40
)

// chartStyle gives the colours, in the light and in the dark.
const chartStyle = `
.back { fill: #ffffff }
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #24292f }
.title { font-size: 18px; font-weight: 600 }
.small { font-size: 11px; fill: #57606a }
.value { font-size: 11px; fill: #57606a; paint-order: stroke; stroke: #ffffff; stroke-width: 3px }
.strong { font-weight: 600; fill: #24292f }
.busy { fill: #cf222e; font-weight: 600 }
.own { fill: #0969da } .deep { fill: #6cb0f7 } .raw { fill: #8c959f } .kit { fill: #b7bec6 } .chain { fill: #d4923a }
.grid { stroke: #d0d7de } .one { stroke: #57606a; stroke-width: 1.5 } .aim { stroke: #cf222e; stroke-width: 2.5 }
@media (prefers-color-scheme: dark) {
.back { fill: #0d1117 } .value { stroke: #0d1117 }
text { fill: #e6edf3 } .small, .value { fill: #9198a1 } .strong { fill: #e6edf3 } .busy { fill: #f85149 }
.own { fill: #4493f8 } .deep { fill: #28599a } .raw { fill: #818b96 } .kit { fill: #5a636d } .chain { fill: #b9772a }
.grid { stroke: #30363d } .one { stroke: #9198a1 } .aim { stroke: #f85149 }
}
`

// chart draws how fast servers are relative to the best of those that serve a raw file.
func (r *results) chart() string {
	var some []load
	for _, l := range loads {
		if r.yardstick(l) > 0 {
			some = append(some, l)
		}
	}
	longest := 1.6
	for _, l := range some {
		for _, s := range series {
			longest = max(longest, r.relative(l, s.server))
		}
	}
	scale := (plotRight - plotLeft) / longest
	bottom := plotTop + groupPitch*len(some)

	var b strings.Builder
	draw := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	draw(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="Speed of varve and others relative to the best server of a raw file">`,
		chartWidth, bottom+axisHeight)
	draw("<style>%s</style>", chartStyle)
	draw(`<rect class="back" width="%d" height="%d" rx="6"/>`, chartWidth, bottom+axisHeight)
	draw(`<text class="title" x="16" y="28">Speed over NBD, best server of a raw file = 1</text>`)
	draw(`<text class="small" x="16" y="48">longer is faster; medians of %s, side by side on one machine</text>`, count(r.of("peers").Settings.Rounds, "round"))
	if r.of("peers").Machine.busy() {
		draw(`<text class="small busy" x="%d" y="48" text-anchor="end">the machine was busy: not for comparing</text>`, chartWidth-16)
	}
	columns := []int{16, 190, 450}
	legend := func(i int) (x, y int) { return columns[i%len(columns)], 66 + 18*(i/len(columns)) }
	for i, s := range series {
		x, y := legend(i)
		draw(`<rect class="%s" x="%d" y="%d" width="12" height="12" rx="2"/><text x="%d" y="%d">%s</text>`, s.class, x, y, x+18, y+11, escape(s.label))
	}
	x, y := legend(len(series))
	draw(`<line class="aim" x1="%d" x2="%d" y1="%d" y2="%d"/><text x="%d" y="%d">number to reach</text>`, x+6, x+6, y-1, y+13, x+18, y+11)
	step := 0.5
	for longest/step > 10 {
		step *= 2
	}
	for at := 0.0; at <= longest; at += step {
		class := "grid"
		if at == 1 {
			class = "one"
		}
		px := plotLeft + at*scale
		draw(`<line class="%s" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, class, px, px, plotTop, bottom)
		draw(`<text class="small" x="%.1f" y="%d" text-anchor="middle">%g×</text>`, px, bottom+16, at)
	}
	for i, l := range some {
		r.drawLoad(draw, l, plotTop+groupPitch*i+8, scale)
	}
	draw("</svg>")
	return b.String()
}

// drawLoad draws the bars of one load below y; scale is the pixels of 1.
func (r *results) drawLoad(draw func(string, ...any), l load, y int, scale float64) {
	title, detail, _ := strings.Cut(l.title, ", ")
	draw(`<text x="%d" y="%d" text-anchor="end">%s</text>`, plotLeft-12, y+26, escape(title))
	draw(`<text class="small" x="%d" y="%d" text-anchor="end">%s</text>`, plotLeft-12, y+42, escape(detail))
	row := y
	for _, s := range series {
		relative := r.relative(l, s.server)
		if relative == 0 {
			continue
		}
		class := "value"
		if s.server == varvePlain {
			class = "value strong"
		}
		draw(`<rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="1.5"/>`, s.class, plotLeft, row, max(relative*scale, 1), barHeight)
		draw(`<text class="%s" x="%.1f" y="%d">%.2f× · %s</text>`, class, plotLeft+relative*scale+6, row+barHeight-1, relative, speedText(median(r.Peers.speeds(l, s.server)), l))
		row += barPitch
	}
	for _, t := range speedAims {
		if t.load == l.name {
			x := plotLeft + t.aim*scale
			draw(`<line class="aim" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, x, x, y-3, y+barHeight+3)
		}
	}
}

// yardstick is the speed of the best server of a raw file; 0 where none was measured.
func (r *results) yardstick(l load) float64 {
	return median(r.Peers.speeds(l, r.Peers.bestRaw(l)))
}

// relative is a server's speed by the yardstick; 0 where it was not measured.
func (r *results) relative(l load, server string) float64 {
	return median(r.Peers.ratios(l, server, r.Peers.bestRaw(l)))
}

// speedText is a speed with its unit, digits in groups.
func speedText(speed float64, l load) string {
	if l.inMiB() {
		return grouped(speed) + " MiB/s"
	}
	return grouped(speed) + "/s"
}

func grouped(x float64) string {
	digits := fmt.Sprintf("%.0f", x)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder never fails
	return b.String()
}
