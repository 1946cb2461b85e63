//go:build race

package clients

// raceDetector tells that the tests, and so the binary under test, watch for data races.
const raceDetector = true
