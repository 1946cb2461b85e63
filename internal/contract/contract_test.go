package contract_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"varve/internal/contract"
)

func TestTimeHasNineDigitsInUTC(t *testing.T) {
	east := time.FixedZone("east", 2*3600)
	for in, want := range map[time.Time]string{
		time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC):           `"2026-01-02T03:04:05.000000000Z"`,
		time.Date(2026, 1, 2, 3, 4, 5, 120_000_000, east):     `"2026-01-02T01:04:05.120000000Z"`,
		time.Date(2026, 1, 2, 3, 4, 5, 987_654_321, time.UTC): `"2026-01-02T03:04:05.987654321Z"`,
	} {
		got, err := json.Marshal(contract.Time{Time: in})
		if err != nil || string(got) != want {
			t.Errorf("%v: %s, %v", in, got, err)
		}
		var back contract.Time
		if err := json.Unmarshal(got, &back); err != nil || !back.Equal(in) {
			t.Errorf("%s reads as %v, %v", got, back, err)
		}
	}
	if contract.At(time.Time{}) != nil {
		t.Error("never is not null")
	}
}

func TestExitCodesAreTheDocumentedOnes(t *testing.T) {
	for code, want := range map[contract.Code]int{
		contract.CodeFailed: 1, contract.CodeUsage: 2, contract.CodeNotFound: 3,
		contract.CodeRefused: 4, contract.CodeDamaged: 5, "of a later version": 1,
	} {
		if got := code.ExitCode(); got != want {
			t.Errorf("%s: %d, want %d", code, got, want)
		}
	}
}

func TestParseRef(t *testing.T) {
	for in, want := range map[string]string{
		"web@one": "web one true", "a.b@c-d": "a.b c-d true",
		"web": "web  false", "@one": " one false", "web@": "web  false", "a@b@c": "a b@c false", "": "  false",
	} {
		volume, name, ok := contract.ParseRef(in)
		if got := fmt.Sprint(volume, " ", name, " ", ok); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
