package main

import "testing"

func TestSearchFindsTheHighestRate(t *testing.T) {
	for _, limit := range []int{1500, 19_999, 20_000, 60_000, 1_000_000} {
		s := &search{climb: func(rate int) (rung, error) {
			r := rung{Rate: rate}
			if rate > limit {
				r.Fails = "loss"
			}
			return r, nil
		}}
		if err := s.run(20_000); err != nil {
			t.Fatal(err)
		}
		if s.good.Rate > limit || float64(s.good.Rate) < float64(limit)*0.8 {
			t.Errorf("of %d, %d was found", limit, s.good.Rate)
		}
	}
}

func TestSearchForgivesARateThatFailsOnce(t *testing.T) {
	tries := map[int]int{}
	s := &search{climb: func(rate int) (rung, error) {
		r := rung{Rate: rate}
		if tries[rate]++; tries[rate] == 1 || rate > 50_000 {
			r.Fails = "loss"
		}
		return r, nil
	}}
	if err := s.run(20_000); err != nil || s.good.Rate < 40_000 {
		t.Errorf("%d was found, %v", s.good.Rate, err)
	}
}

func TestSearchEndsWhenNothingIsGoodEnough(t *testing.T) {
	s := &search{climb: func(rate int) (rung, error) { return rung{Rate: rate, Fails: "loss"}, nil }}
	if err := s.run(20_000); err != nil || s.good.Rate != 0 || s.bad.Rate < ceilingMin {
		t.Errorf("good %d, bad %d, %v", s.good.Rate, s.bad.Rate, err)
	}
}
